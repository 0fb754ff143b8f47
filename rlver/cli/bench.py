"""`rlver bench`: how well do policies do with users that they never trained with?"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.agents.base import UserType
from rlver.agents.speech import Phrasing
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
    JsonOption,
    LanguageOption,
    PresetOption,
    ProfilesOption,
    SeedOption,
    load_profiles,
)
from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rlver.agents.base import SentientAgent
    from rlver.benchmark.log import LoggedDialogue, RunConfig
    from rlver.benchmark.results import BenchmarkResults
    from rlver.benchmark.run import Pace
    from rlver.cli.progress import Steps
    from rlver.core.emotion import Preset
    from rlver.core.profile import Language, Profile
    from rlver.llm.usage import Prices
    from rlver.policies.base import Policy

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
    user_type: Annotated[
        UserType,
        typer.Option(
            "--user-type", help="Vanilla users hint at what they need; challenging ones never do and want more."
        ),
    ] = "vanilla",
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
    out: Annotated[Path | None, typer.Option(help="Folder for logs and results; default: runs/bench/<time>.")] = None,
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
    prices: PricesOption = None,
    as_json: JsonOption = False,
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
    from rlver.agents.llm import JudgeOptions
    from rlver.agents.resolve import resolve_user
    from rlver.benchmark.fluency import FluencyCheck, replies_of
    from rlver.benchmark.log import read_log
    from rlver.benchmark.results import BenchmarkResults, Sampling, assess
    from rlver.core.data import digest
    from rlver.core.emotion import get_preset
    from rlver.llm import Limits
    from rlver.llm.usage import Prices, Usage, add
    from rlver.policies.resolve import resolve_policy
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
        resolve_policy(
            spec,
            language,
            think=think,
            max_tokens=max_tokens,
            temperature=temperature,
            connect=connections.connect,
        )
        for spec in policy
    ]
    options = JudgeOptions(judge_temperature=judge_temperature, votes=votes)
    agent = resolve_user(
        user,
        language,
        user=user_type,
        phrasing=phrasing,
        connect=connections.connect,
        judges=judge or (),
        options=options,
    )
    connections.check()

    results, fluency = [], None
    for number, who in enumerate(answering, 1):
        path = folder / f"{number}-{_slug(who.spec)}.jsonl"
        pace = _pace(who, agent, batch, concurrency, deadline)
        config = _config(who, agent, preset, language, seed)
        _play(path, config, resume, who, agent, rules, chosen, repeats, pace, money)
        transcripts, usage = [], Usage()
        for dialogue in read_log(path):
            transcripts.append(dialogue.transcript)
            add(usage, dialogue.usage)
        if fluency is None and len(answering) > 1:
            fluency = FluencyCheck.calibrate(language, replies_of(transcripts))
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
        _show(found, matrix)
        if connections.troubles:
            typer.echo(f"Endpoints: {connections.troubles}")
        typer.echo("\n".join(["Written:", *(f"  {result.transcripts}" for result in results), f"  {file}"]))


def _config(who: Policy, agent: SentientAgent, preset: str, language: Language, seed: int) -> RunConfig:
    from rlver.benchmark.log import RunConfig

    return RunConfig(
        policy=who.spec,
        prompt=who.prompt_hash,
        think=who.think,
        temperature=getattr(who, "temperature", None),
        max_tokens=getattr(who, "max_tokens", None),
        user=agent.identity,
        preset=preset,
        language=language,
        seed=seed,
    )


def _pace(who: Policy, agent: SentientAgent, batch: int, concurrency: int, deadline: float) -> Pace:
    """Batches for who answers at once; as many dialogues as calls where there is an endpoint to wait for."""
    from rlver.benchmark.run import Pace
    from rlver.policies.remote import RemotePolicy
    from rlver.policies.scripted import ScriptedPolicy
    from rlver.rollout import waits

    if _HUMAN in (who.spec, agent.identity):
        return Pace(1)
    if not waits(who, agent):
        return Pace(batch)
    if isinstance(who, (RemotePolicy, ScriptedPolicy)):
        return Pace(1, concurrency, deadline)
    return Pace(min(batch, concurrency), 1, deadline * batch)


def _play(
    path: Path,
    config: RunConfig,
    resume: bool,
    who: Policy,
    agent: SentientAgent,
    rules: Preset,
    profiles: list[Profile],
    repeats: int,
    pace: Pace,
    money: Prices,
) -> None:
    """Fill the log, with progress."""
    from rlver.benchmark.log import RunLog
    from rlver.benchmark.run import list_jobs, run_to_log
    from rlver.cli.progress import Steps

    jobs = list_jobs(profiles, repeats, config.seed)
    with RunLog(path, config, resume) as log, Steps(who.spec) as steps:
        score = Running(steps, len(jobs), sum(job.key in log.scored for job in jobs), money, who.spec != _HUMAN)
        try:
            run_to_log(jobs, who, agent, rules, pace, log, score.take)
        except RlverError as error:
            kept = f"{len(log.scored)} of {len(jobs)} dialogues are kept"
            raise RlverError(f"{str(error).rstrip('.')}; {kept} in {path}, go on with --resume.") from None


class Running:
    """The state of a benchmark while it runs: count, mean, failures and cost."""

    def __init__(self, steps: Steps, total: int, done: int, money: Prices, shown: bool) -> None:
        from rlver.llm.usage import Usage

        self._steps, self._total, self._done, self._money, self._shown = steps, total, done, money, shown
        self._scores = 0.0
        self._scored = self._failed = 0
        self._usage: Usage = {}

    def take(self, dialogue: LoggedDialogue) -> None:
        """Count a dialogue that is over."""
        from rlver.llm.usage import add

        self._done += 1
        if dialogue.transcript.stop.scored:
            self._scored += 1
            self._scores += dialogue.transcript.score
        else:
            self._failed += 1
        add(self._usage, dialogue.usage)
        if self._shown:
            self._steps.update(self._done, self._total, self._note())

    def _note(self) -> str:
        parts = [f"mean {self._scores / self._scored:.1f}"] if self._scored else []
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._usage:
            cost = self._money.cost(self._usage)
            parts.append("cost unknown" if cost is None else f"${cost:.2f}")
        return ", ".join(parts)


def _show(found: BenchmarkResults, matrix: bool) -> None:
    from rich.console import Console

    from rlver.benchmark.report import intention_table, matrix_table, score_table

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
        if matrix:
            console.print(matrix_table(result))


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.-]+", "-", spec).strip("-.")[-60:]
