"""The command `rlver`: one file per subcommand, and the place where errors become sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from rlver.cli import bench, chat, demo, export, judge, leaderboard, profiles, sage, serve, train
from rlver.core.errors import RlverError
from rlver.version import version

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="rlver",
    help="Train and test language models that talk with people in trouble: a simulated user's emotion is the reward.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (train, export, bench, leaderboard, chat, serve, profiles, judge, sage, demo):
    command.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlver {version()}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's own) and return its exit code.

    0: done; 1: bad input or a failed resource, told in one sentence; 2: wrong usage; 3: a training that
    collapsed; 130: interrupted.
    """
    # Threads that spin while they wait cost more than they save on few cores; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="rlver")
    except RlverError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}the system refused ({error.strerror or error}).")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if code == INTERRUPTED:
            print("Interrupted.", file=sys.stderr)
        return code
    return 0


def _fail(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return 1
