"""`rlver bench`: how well do policies support users that they were not trained with?"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.connect import (
    CACHE_HELP,
    AttemptsOption,
    ConcurrencyOption,
    Connections,
    EndpointPanel,
    PricesOption,
    RateOption,
    TimeoutOption,
)
from rlver.cli.console import show
from rlver.cli.options import (
    PHRASING_HELP,
    USER_HELP,
    USERS,
    DeviceOption,
    JsonOption,
    LanguageOption,
    PresetOption,
    ProfilesOption,
    SeedOption,
    UserTypeOption,
)
from rlver.core.errors import RlverError
from rlver.users.embedded.speech import Phrasing

if TYPE_CHECKING:
    from rlver.evaluation.results import BenchmarkResults

JudgePanel = "How a user that is a language model judges"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("bench", rich_help_panel="Evaluate")(bench)


def bench(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            metavar="SPEC",
            help="The policy, which replies to the users: a folder with a model, scripted:NAME, openai:MODEL@BASE_URL, "
            "any:PROVIDER/MODEL, or human. Repeat the option to compare several.",
        ),
    ],
    user: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help=f"{USER_HELP} human: a person at this terminal.",
            autocompletion=lambda: [*USERS, "human"],
        ),
    ] = "embedded",
    user_type: UserTypeOption = "vanilla",
    language: LanguageOption = "en",
    preset: PresetOption = "sage",
    profiles: ProfilesOption = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Use the first N profiles only.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Dialogues per profile.")] = 1,
    seed: SeedOption = 0,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Let models think before they reply.  [default: as they were trained]"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Sampling temperature of the policies; 0 takes the most probable token.  [default: as in training, or "
            "the default of the endpoint]",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Token limit of a reply and its thinking.  [default: as in training, or the default of the endpoint]",
        ),
    ] = None,
    phrasing: Annotated[Phrasing, typer.Option(help=PHRASING_HELP)] = "heldout",
    batch: Annotated[
        int, typer.Option(min=1, help="Dialogues that a local model plays at once. Results do not depend on it.")
    ] = 64,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for logs and results.  [default: runs/bench/TIME]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the benchmark in --out. Failed dialogues are played again.")
    ] = False,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="A model that judges in place of the one that speaks. Repeat the option for an ensemble.",
            rich_help_panel=JudgePanel,
        ),
    ] = None,
    votes: Annotated[
        int,
        typer.Option(min=1, help="Verdicts of each judge on a reply. The median counts.", rich_help_panel=JudgePanel),
    ] = 1,
    judge_temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature of the verdicts.", rich_help_panel=JudgePanel)
    ] = 0.0,
    concurrency: ConcurrencyOption = 32,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 90.0,
    attempts: AttemptsOption = 6,
    deadline: Annotated[
        float,
        typer.Option(min=1.0, help="Seconds until a dialogue counts as failed.", rich_help_panel=EndpointPanel),
    ] = 900.0,
    cache: Annotated[
        Path | None,
        typer.Option(help=f"{CACHE_HELP}  [default: cache.sqlite in --out]", rich_help_panel=EndpointPanel),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Nucleus sampling (top-p) of policies behind endpoints.",
            rich_help_panel=EndpointPanel,
        ),
    ] = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
    groups: Annotated[
        bool,
        typer.Option("--groups", help="Also print a table by hidden intention and character type, with intervals."),
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Also print which acts each policy performs for which intention.")
    ] = False,
) -> None:
    """Benchmark one or several policies and print one table.

    Each policy plays a dialogue with every profile. The final emotion of the simulated user is the score (0-100).

    The first of several policies is the base: the fluency check is calibrated so that 95 % of its replies pass.
    Every dialogue is written to a log as soon as it ends. After a failure or an interruption --resume continues.

    Examples:

      rlver bench --policy scripted:generic --policy scripted:hedge --policy scripted:oracle

      rlver bench --policy runs/demo/turn/base --policy runs/demo/turn/policy --repeats 3 --matrix

      rlver bench --policy openai:gpt-4.1 --user openai:deepseek-chat@https://api.deepseek.com --out runs/gpt

      rlver bench --policy openai:gpt-4.1 --user openai:deepseek-chat@https://api.deepseek.com --out runs/gpt --resume
    """
    from functools import partial

    from rlver.cli.running import BenchmarkProgress
    from rlver.core.emotion import get_preset
    from rlver.evaluation.benchmark import pace_for
    from rlver.evaluation.profiles import load_profiles
    from rlver.evaluation.results import Sampling
    from rlver.evaluation.suite import Entry, Suite
    from rlver.llm import Limits
    from rlver.llm.usage import Prices
    from rlver.policies.load import load_policy
    from rlver.users.llm import JudgeOptions
    from rlver.users.load import load_user

    if resume and out is None:
        raise RlverError("--resume needs --out, which names the folder of the benchmark to continue.")
    rules = get_preset(preset)
    chosen = load_profiles(language, profiles)
    if n is not None and n > len(chosen):
        raise RlverError(f"--n {n}: there are only {len(chosen)} profiles.")
    price_table = Prices(prices)
    folder = out or Path("runs/bench") / datetime.now().strftime("%Y%m%d-%H%M%S")
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache or folder / "cache.sqlite")
    policies = [
        load_policy(
            spec,
            language,
            think=think,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            device=device,
            connect=connections.connect,
        )
        for spec in policy
    ]
    options = JudgeOptions(judge_temperature=judge_temperature, votes=votes)
    simulated_user = load_user(
        user,
        language,
        user_type=user_type,
        phrasing=phrasing,
        connect=connections.connect,
        judges=judge or (),
        options=options,
    )
    connections.check()

    entries = [Entry(each, simulated_user, chosen[:n]) for each in policies]
    with BenchmarkProgress(price_table) as progress:
        suite = Suite(
            folder,
            rules,
            seed=seed,
            repeats=repeats,
            resume=resume,
            pace=partial(pace_for, batch=batch, concurrency=concurrency, deadline=deadline),
            prices=price_table,
            on_progress=progress.update,
        )
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        results = suite.results(entries, str(profiles) if profiles else "built-in", sampling)
    if as_json:
        typer.echo(results.model_dump_json(indent=2))
    else:
        _show(results, groups, matrix)
        if connections.troubles:
            typer.echo(f"Endpoints: {connections.troubles}")
        logs = [f"  {result.transcripts}" for result in results.policies]
        typer.echo("\n".join(["Written:", *logs, f"  {folder / 'results.json'}"]))


def _show(results: BenchmarkResults, groups: bool, matrix: bool) -> None:
    from rlver.evaluation.report import groups_table, intention_table, matrix_table, score_table

    title = f"Users: {results.user}, preset {results.preset}, seed {results.seed}"
    show(score_table(results.policies, title), "", intention_table(results.policies), "")
    for result in results.policies:
        unscored = [f"{count} {why} ({why.meaning})" for why, count in result.stops.items() if not why.scored]
        if unscored:
            show(f"Not scored with {result.policy}: {'; '.join(unscored)}")
        if result.usage:
            tokens = [f"{s}: {t.calls:,} answers, {t.input:,} + {t.output:,} tokens" for s, t in result.usage.items()]
            cost = "unknown" if result.cost is None else f"${result.cost:.4f}"
            show(f"Used with {result.policy}: {'; '.join(tokens)}; cost {cost}")
        if groups:
            show(groups_table(result), "")
        if matrix:
            show(matrix_table(result), "")
