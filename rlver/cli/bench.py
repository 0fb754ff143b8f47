"""`rlver bench`: how well do policies do with users that they never trained with?"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.connect import (
    AttemptsOption,
    CacheOption,
    ConcurrencyOption,
    Connections,
    EndpointPanel,
    PricesOption,
    RateOption,
    TimeoutOption,
)
from rlver.cli.options import (
    DeviceOption,
    JsonOption,
    LanguageOption,
    PresetOption,
    ProfilesOption,
    SeedOption,
    UserTypeOption,
    load_profiles,
)
from rlver.core.errors import RlverError
from rlver.users.embedded.speech import Phrasing

if TYPE_CHECKING:
    from rlver.core.interfaces import Policy, User
    from rlver.core.profile import Language
    from rlver.evaluation.benchmark import Pace
    from rlver.evaluation.log import RunConfig
    from rlver.evaluation.results import BenchmarkResults, PolicyResult

_HUMAN = "human"
JudgePanel = "How a language model as user judges"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("bench")(bench)


def bench(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            help="Who answers: a folder with a model, scripted:NAME, openai:MODEL@BASE_URL, any:PROVIDER/MODEL, or "
            "human; give it again to compare several.",
        ),
    ],
    user: Annotated[
        str,
        typer.Option(
            "--user",
            help="Who feels and judges: embedded (or vanilla, challenging: the embedded user of that type), "
            "openai:MODEL@BASE_URL, any:PROVIDER/MODEL, or human.",
        ),
    ] = "embedded",
    user_type: UserTypeOption = "vanilla",
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
        typer.Option(
            min=0.0,
            help="Of a model's sampling, 0 takes the likeliest token; default: as in training, or the endpoint's own.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of one reply, thinking included; default: as in training, or the endpoint's own."
        ),
    ] = None,
    phrasing: Annotated[
        Phrasing, typer.Option(help="Whether embedded users speak with sentences held out of training or with its own.")
    ] = "heldout",
    batch: Annotated[
        int, typer.Option(min=1, help="Dialogues that a local model answers at once; results do not depend on it.")
    ] = 64,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for logs and results; default: runs/bench/TIME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the benchmark in --out; what failed is played again.")
    ] = False,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that judges in the place of the one that speaks; several make an ensemble.",
            rich_help_panel=JudgePanel,
        ),
    ] = None,
    votes: Annotated[
        int, typer.Option(min=1, help="Verdicts of each judge; the median counts.", rich_help_panel=JudgePanel)
    ] = 1,
    judge_temperature: Annotated[
        float, typer.Option(min=0.0, help="Of the verdicts.", rich_help_panel=JudgePanel)
    ] = 0.0,
    concurrency: ConcurrencyOption = 32,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 90.0,
    attempts: AttemptsOption = 6,
    deadline: Annotated[
        float, typer.Option(min=1.0, help="Seconds that one dialogue may take.", rich_help_panel=EndpointPanel)
    ] = 900.0,
    cache: CacheOption = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Nucleus sampling of policies behind endpoints.", rich_help_panel=EndpointPanel
        ),
    ] = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="Also print intervals per hidden intention and character type.")
    ] = False,
    matrix: Annotated[bool, typer.Option("--matrix", help="Also print which acts each policy does for whom.")] = False,
) -> None:
    """Benchmark one or several policies and print one table.

    The first of several policies is the base: the fluency check is set so that 95 % of its replies pass. Every
    dialogue is written down as soon as it is over: after a failure or a kill, --resume goes on.

    Examples:

      rlver bench --policy scripted:generic --policy scripted:hedge --policy scripted:oracle

      rlver bench --policy runs/demo/base --policy runs/demo/trained --repeats 3 --matrix

      rlver bench --policy openai:gpt-4.1 --user openai:deepseek-chat@https://api.deepseek.com --out runs/gpt

      rlver bench --policy openai:gpt-4.1 --user openai:deepseek-chat@https://api.deepseek.com --out runs/gpt --resume
    """
    from rlver.cli.running import fill
    from rlver.core.data import digest
    from rlver.core.emotion import get_preset
    from rlver.evaluation.fluency import FluencyCheck, replies_of
    from rlver.evaluation.log import read_log
    from rlver.evaluation.results import BenchmarkResults, Sampling, assess
    from rlver.llm import Limits
    from rlver.llm.usage import Prices, Usage, add
    from rlver.policies.load import load_policy
    from rlver.users.llm import JudgeOptions
    from rlver.users.load import load_user
    from rlver.version import version

    if resume and out is None:
        raise RlverError("--resume: say with --out which benchmark to go on with.")
    rules = get_preset(preset)
    chosen = load_profiles(language, profiles)
    if n is not None and n > len(chosen):
        raise RlverError(f"--n {n}: there are only {len(chosen)} profiles.")
    chosen = chosen[:n]
    money = Prices(prices)
    folder = out or Path("runs/bench") / datetime.now().strftime("%Y%m%d-%H%M%S")
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache or folder / "cache.sqlite")
    answering = [
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
    agent = load_user(
        user,
        language,
        user_type=user_type,
        phrasing=phrasing,
        connect=connections.connect,
        judges=judge or (),
        options=options,
    )
    connections.check()

    results: list[PolicyResult] = []
    fluency: FluencyCheck | None = None
    for number, who in enumerate(answering, 1):
        path = folder / f"{number}-{_slug(who.spec)}.jsonl"
        pace = _pace(who, agent, batch, concurrency, deadline)
        config = _config(who, agent, preset, language, seed)
        fill(path, config, resume, who, agent, rules, chosen, repeats, pace, money)
        transcripts, usage = [], Usage()
        for dialogue in read_log(path):
            transcripts.append(dialogue.transcript)
            add(usage, dialogue.usage)
        # A base that said nothing readable leaves nothing to compare with.
        if not results and len(answering) > 1 and (said := replies_of(transcripts)):
            fluency = FluencyCheck.calibrate(language, said)
        results.append(assess(who, transcripts, fluency, path, usage, money))

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
        _show(found, groups, matrix)
        if connections.troubles:
            typer.echo(f"Endpoints: {connections.troubles}")
        typer.echo("\n".join(["Written:", *(f"  {result.transcripts}" for result in results), f"  {file}"]))


def _config(who: Policy, agent: User, preset: str, language: Language, seed: int) -> RunConfig:
    from rlver.evaluation.log import RunConfig

    return RunConfig(
        policy=who.spec,
        prompt=who.prompt_hash,
        think=who.think,
        temperature=getattr(who, "temperature", None),
        max_tokens=getattr(who, "max_tokens", None),
        top_p=getattr(who, "top_p", None),
        user=agent.identity,
        user_settings=getattr(agent, "settings", {}),
        preset=preset,
        language=language,
        seed=seed,
    )


def _pace(who: Policy, user: User, batch: int, concurrency: int, deadline: float) -> Pace:
    """As many dialogues as calls where there is an endpoint to wait for, else as many as a local model batches."""
    from rlver.evaluation.benchmark import Pace
    from rlver.policies.remote import RemotePolicy
    from rlver.policies.scripted import ScriptedPolicy
    from rlver.users.llm import LlmUser

    if _HUMAN in (who.spec, user.identity):
        return Pace(1)
    if isinstance(who, RemotePolicy):
        return Pace(concurrency, deadline)
    if not isinstance(user, LlmUser):
        return Pace(batch)
    if isinstance(who, ScriptedPolicy):
        return Pace(concurrency, deadline)
    slots = min(batch, concurrency)
    return Pace(slots, deadline * slots)  # a local model gives all dialogues their tokens in turn


def _show(found: BenchmarkResults, groups: bool, matrix: bool) -> None:
    from rich.console import Console

    from rlver.evaluation.report import groups_table, intention_table, matrix_table, score_table

    console = Console()
    console.print(score_table(found.policies, f"{found.user}, preset {found.preset}, seed {found.seed}"))
    console.print(intention_table(found.policies))
    for result in found.policies:
        unscored = [f"{count} {why} ({why.meaning})" for why, count in result.stops.items() if not why.scored]
        if unscored:
            typer.echo(f"Not scored with {result.policy}: {'; '.join(unscored)}")
        if result.usage:
            tokens = [f"{s}: {t.calls:,} answers, {t.input:,} + {t.output:,} tokens" for s, t in result.usage.items()]
            cost = "unknown" if result.cost is None else f"${result.cost:.4f}"
            typer.echo(f"Used with {result.policy}: {'; '.join(tokens)}; cost {cost}")
        if groups:
            console.print(groups_table(result))
        if matrix:
            console.print(matrix_table(result))


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.-]+", "-", spec).strip("-.")[-60:]
