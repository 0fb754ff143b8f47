"""`rlver bench`: how well do policies do with users that they never trained with?"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.agents.speech import Phrasing
from rlver.cli.options import (
    JsonOption,
    LanguageOption,
    PresetOption,
    ProfilesOption,
    SeedOption,
    UserOption,
    load_profiles,
)
from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rlver.benchmark.results import BenchmarkResults

_ONE_AT_A_TIME = "human"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("bench")(bench)


def bench(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            help="Who answers: a folder with a model, scripted:NAME, or human; give it again to compare several.",
        ),
    ],
    user: UserOption = "vanilla",
    language: LanguageOption = "en",
    preset: PresetOption = "sage",
    profiles: ProfilesOption = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Take the first N profiles only.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Dialogues per profile.")] = 1,
    seed: SeedOption = 0,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Let models think first; default: as they were trained."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Of a model's sampling, 0 takes the likeliest token; default: as in training."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of one reply, thinking included; default: as in training.")
    ] = None,
    phrasing: Annotated[
        Phrasing, typer.Option(help="Whether users speak with sentences held out of training or with its own.")
    ] = "heldout",
    batch: Annotated[int, typer.Option(min=1, help="Dialogues that run at once; results do not depend on it.")] = 64,
    out: Annotated[
        Path | None, typer.Option(help="Folder for transcripts and results; default: runs/bench/<time>.")
    ] = None,
    as_json: JsonOption = False,
    matrix: Annotated[bool, typer.Option("--matrix", help="Also print which acts each policy does for whom.")] = False,
) -> None:
    """Benchmark one or several policies and print one table.

    The first of several policies is the base: the fluency check is set so that 95 % of its replies pass.

    Examples:

      rlver bench --policy scripted:generic --policy scripted:hedge --policy scripted:oracle

      rlver bench --policy runs/demo/base --policy runs/demo/trained --repeats 3 --matrix

      rlver bench --policy my-model --language zh --profiles profiles.jsonl --json
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rlver.agents import EmbeddedAgent
    from rlver.benchmark.fluency import FluencyCheck, replies_of
    from rlver.benchmark.results import BenchmarkResults, Sampling, assess
    from rlver.benchmark.run import run_benchmark
    from rlver.core.data import digest
    from rlver.core.emotion import get_preset
    from rlver.core.transcript import write_transcripts
    from rlver.policies.resolve import resolve_policy
    from rlver.version import version

    rules = get_preset(preset)
    chosen = load_profiles(language, profiles)
    if n is not None and n > len(chosen):
        raise RlverError(f"--n {n}: there are only {len(chosen)} profiles.")
    chosen = chosen[:n]
    answering = [
        resolve_policy(spec, language, think=think, max_tokens=max_tokens, temperature=temperature) for spec in policy
    ]
    agent = EmbeddedAgent(language, user, phrasing)
    folder = out or Path("runs/bench") / datetime.now().strftime("%Y%m%d-%H%M%S")

    results, check = [], None
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal or _ONE_AT_A_TIME in policy
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        for number, who in enumerate(answering, 1):
            task = progress.add_task(who.spec, total=len(chosen) * repeats)
            transcripts = run_benchmark(
                chosen,
                who,
                agent,
                rules,
                seed,
                repeats,
                1 if who.spec == _ONE_AT_A_TIME else batch,
                lambda done, _, task=task: progress.update(task, completed=done),  # type: ignore[misc]
            )
            path = folder / f"{number}-{_slug(who.spec)}.jsonl"
            write_transcripts(path, transcripts)
            if check is None and len(answering) > 1:
                check = FluencyCheck.calibrate(language, replies_of(transcripts))
            results.append(assess(who, transcripts, check, path))

    found = BenchmarkResults(
        rlver=version(),
        language=language,
        preset=preset,
        user=agent.identity,
        profiles=str(profiles) if profiles else "built-in",
        profiles_hash=digest(*(profile.model_dump_json() for profile in chosen)),
        n=len(chosen),
        repeats=repeats,
        seed=seed,
        sampling=Sampling(temperature=temperature, max_tokens=max_tokens),
        policies=tuple(results),
    )
    file = folder / "results.json"
    found.write(file)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found, matrix)
        typer.echo("\n".join(["Written:", *(f"  {result.transcripts}" for result in results), f"  {file}"]))


def _show(found: BenchmarkResults, matrix: bool) -> None:
    from rich.console import Console

    from rlver.benchmark.report import intention_table, matrix_table, score_table

    console = Console()
    console.print(score_table(found.policies, f"{found.user}, preset {found.preset}, seed {found.seed}"))
    console.print(intention_table(found.policies))
    if matrix:
        for result in found.policies:
            console.print(matrix_table(result))


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.-]+", "-", spec).strip("-.")[-60:]
