"""The command `rlver`: one file per subcommand, and the place where errors become sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from rlver.cli import bench, chat, demo, export, judge, leaderboard, profiles, sage, serve, train
from rlver.cli.usage_errors import usage_sentence
from rlver.core.errors import RlverError
from rlver.version import version

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""

_INSTALL = {
    "torch": "PyTorch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
}
"""Packages that only some commands load, by the name under which Python imports them."""

app = typer.Typer(
    name="rlver",
    help="Train and evaluate dialogue models. The emotion of a simulated user is the reward and the score.",
    epilog="Start with `rlver demo`, which trains and evaluates a tiny policy in a few minutes, or with `rlver chat`, "
    "where you reply to a simulated user yourself. `rlver COMMAND --help` explains a command with examples. "
    "`rlver --install-completion` lets your shell complete commands and options with the Tab key.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (demo, chat, train, export, bench, leaderboard, profiles, judge, serve, sage):
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

    0: done; 1: bad input or a resource that failed, reported in one sentence; 2: wrong usage; 3: a training run whose
    policy collapsed; 130: interrupted.
    """
    # Threads that spin while they wait slow down machines with few cores. torch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # transformers draws a progress bar for every model that it loads or saves, into log files, too.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="rlver", standalone_mode=False)
    except TyperException as error:
        sentence = usage_sentence(error)
        return _fail(sentence, error.exit_code) if sentence else error.exit_code
    except RlverError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _INSTALL:
            raise
        return _fail(f"this command needs {_INSTALL[package]}, which is not installed; run: pip install {package}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}the system refused ({error.strerror or error}).")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    if code == INTERRUPTED:
        print("Interrupted.", file=sys.stderr)
    return code or 0


def _fail(sentence: str, code: int = 1) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return code
