"""`rlver leaderboard`, `compare`, `judges` and `rejudge`: what results, side by side, allow to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.cli.connect import AttemptsOption, CacheOption, ConcurrencyOption, Connections, RateOption, TimeoutOption
from rlver.cli.options import JsonOption, ProfilesOption, SeedOption
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType

if TYPE_CHECKING:
    from rlver.core.profile import Profile
    from rlver.core.transcript import Transcript

FILES = "Logs of `rlver bench`, transcripts, or official transcript files; a folder stands for all of them in it."


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("leaderboard")(leaderboard)
    app.command("compare")(compare)
    app.command("judges")(judges)
    app.command("rejudge")(rejudge)


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=FILES)],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rank runs. Runs that the data cannot tell apart share a rank and are marked as ties.

    Examples:

      rlver leaderboard runs/bench/a runs/bench/b

      rlver leaderboard transcripts/*.jsonl --json
    """
    from rlver.evaluation.leaderboard import rank_runs, undecided

    found = _read(runs)
    table = rank_runs(found, seed)
    if as_json:
        typer.echo(json.dumps([place.model_dump(mode="json") for place in table], ensure_ascii=False, indent=2))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ranks = [place.rank for place in table]
    shown = Table(box=SIMPLE, show_edge=False, padding=0)
    for column in ("rank", "95 %", "model", "score", "95 %", "success", "failure", "n", ""):
        shown.add_column(column, justify="left" if column in ("model", "") else "right", no_wrap=column != "model")
    for place in table:
        tied = ranks.count(place.rank) > 1
        low, high = place.ci95
        shown.add_row(
            str(place.rank),
            "{}-{}".format(*place.rank_ci95),
            Text(place.name),
            f"{place.score:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{100 * place.success:.0f} %",
            f"{100 * place.failure:.0f} %",
            str(place.n),
            "tie" if tied else "",
        )
    console = Console()
    console.print(shown)
    for rank in sorted({rank for rank in ranks if ranks.count(rank) > 1}):
        console.print(f"Tie for {rank}: {', '.join(place.name for place in table if place.rank == rank)}", markup=False)
    doubts = [f"{a} and {b}" for a, b in undecided(found, seed)]
    if doubts:
        console.print(f"Not told apart in spite of their ranks: {'; '.join(doubts)}", markup=False)
    for line in _cautions(found):
        console.print(line, markup=False)


def compare(
    first: Annotated[Path, typer.Argument(help="A run: log, transcripts or official file.")],
    second: Annotated[Path, typer.Argument(help="Another run on the same profiles.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs profile by profile: difference, interval, p, effect, and what difference could be found at all.

    Example:

      rlver compare runs/bench/before/1-policy.jsonl runs/bench/after/1-policy.jsonl
    """
    from rlver.evaluation.compare import compare as pair

    runs = [_one(path) for path in (first, second)]
    found = pair(runs[0], runs[1], seed)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    low, high = found.ci95
    verdict = "differ" if found.p < 0.05 else "cannot be told apart"
    typer.echo(
        f"{first} minus {second}: {found.difference:+.1f} points (95 %: {low:+.1f} to {high:+.1f}), p = {found.p:.4f}, "
        f"effect d = {found.effect:+.2f}; on {found.n} profiles they {verdict}.\n"
        f"A true difference of {found.detectable:.1f} points would be found in four of five cases."
    )
    if found.left_out:
        typer.echo(f"Left out: {found.left_out} profiles that only one of them scored.")
    for line in _cautions({"1": runs[0], "2": runs[1]}):
        typer.echo(line)


def judges(
    first: Annotated[Path, typer.Argument(help="Folder (or file) of runs that one judge judged.")],
    second: Annotated[Path, typer.Argument(help="The runs of the same names, that another judge judged.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Do two judges agree? Rank correlation over models (if there are three) and over dialogues, with intervals.

    Runs are matched by name, dialogues by run and profile. Here every judge played its own user, so that the talks
    differ, too; `rejudge` lets two judges judge the very same talks.

    Example:

      rlver judges transcripts/deepseek-v3 transcripts/gpt-4o
    """
    from rlver.evaluation.compare import agreement, profile_scores

    sides = [_read([path]) for path in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise RlverError(
            f"{first} and {second} have no run of the same name ({', '.join(sides[0])}; {', '.join(sides[1])})."
        )
    scores = [{name: profile_scores(side[name]) for name in common} for side in sides]
    talks = [{f"{n}/{p}": value for n, by in side.items() for p, value in by.items()} for side in scores]
    found: dict[str, Any] = {"runs": common, "dialogues": agreement(talks[0], talks[1], seed).model_dump()}
    if len(common) >= 3:
        means = [{name: sum(by.values()) / len(by) for name, by in side.items()} for side in scores]
        found["models"] = agreement(means[0], means[1], seed).model_dump()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for what in ("models", "dialogues"):
        if part := found.get(what):
            (low, high), (down, up) = part["ci95"], part["shift_ci95"]
            typer.echo(
                f"Over {part['n']} {what}: Spearman {part['spearman']:.2f} (95 %: {low:.2f} to {high:.2f}); "
                f"the second gives {part['shift']:+.1f} points (95 %: {down:+.1f} to {up:+.1f})."
            )
    if "models" not in found:
        typer.echo(f"Only {len(common)} runs are in both ({', '.join(common)}); a rank correlation of models needs 3.")


def rejudge(
    run: Annotated[Path, typer.Argument(help="A log, transcripts, or an official file: the stored judgement.")],
    user: Annotated[
        str, typer.Option("--user", help="Who judges today: embedded, vanilla, challenging, openai:MODEL@BASE_URL ...")
    ],
    user_type: Annotated[UserType, typer.Option("--user-type", help="Whom a language model plays.")] = "vanilla",
    profiles: ProfilesOption = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Take the first N dialogues only.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for both judgements of every reply.")] = None,
    seed: SeedOption = 0,
    concurrency: ConcurrencyOption = 32,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 90.0,
    attempts: AttemptsOption = 6,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the replies of a run again, each in the talk as it was, and tell how far the judgement has drifted.

    Nothing comes from a cache unless --cache names one: a judge that has changed must not be asked its old self.

    Example:

      rlver rejudge runs/bench/a/1-policy.jsonl --user openai:deepseek-chat@https://api.deepseek.com --out drift.jsonl
    """
    from rlver.core.jsonl import write_objects
    from rlver.evaluation.rejudge import drift
    from rlver.evaluation.rejudge import rejudge as judge_again
    from rlver.llm import Limits
    from rlver.users.load import load_user

    transcripts = _one(run)[:n]
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache)
    language = transcripts[0].language
    agent = load_user(user, language, user_type=user_type, connect=connections.connect)
    connections.check()
    judged = judge_again(transcripts, _profiles(run, transcripts, profiles), agent, seed, concurrency)
    if out:
        write_objects(out, judged)
    found = drift(judged)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    (low, high), (below, above) = found.ci95, found.spearman_ci95
    typer.echo(
        f"{found.n} replies judged again by {agent.identity} ({found.failed} without a usable verdict): "
        f"{found.difference:+.2f} points a reply (95 %: {low:+.2f} to {high:+.2f}), the same direction in "
        f"{100 * found.same_direction:.0f} %, Spearman {found.spearman:.2f} (95 %: {below:.2f} to {above:.2f})."
    )


def _read(paths: Sequence[Path]) -> dict[str, list[Transcript]]:
    from rlver.evaluation.leaderboard import read_runs

    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise RlverError(f"{path}: no .jsonl files in this folder.")
        files += inside
    return read_runs(files)


def _one(path: Path) -> list[Transcript]:
    runs = _read([path])
    if len(runs) > 1:
        raise RlverError(f"{path}: holds several runs ({', '.join(runs)}); name the file of one.")
    return next(iter(runs.values()))


def _cautions(runs: dict[str, list[Transcript]]) -> list[str]:
    """What must be said beside scores that were not made alike."""
    lines = []
    for what in ("user", "preset", "language"):
        values = sorted({str(getattr(t, what)) for transcripts in runs.values() for t in transcripts})
        if len(values) > 1:
            lines.append(
                f"Caution: these runs differ in their {what} ({', '.join(values)}); such scores do not compare."
            )
    failed = sum(not t.stop.scored for transcripts in runs.values() for t in transcripts)
    if failed:
        lines.append(f"Not scored: {failed} dialogues in which a model or an endpoint failed.")
    return lines


def _profiles(run: Path, transcripts: Sequence[Transcript], path: Path | None) -> dict[str, Profile]:
    """The profiles of these transcripts: from the given file, from an official transcript itself, or generated."""
    from rlver.core.jsonl import read_objects
    from rlver.evaluation.profiles import find_profile
    from rlver.formats.profile_files import read_profiles
    from rlver.formats.sage_transcripts import is_official_transcript, parse_official_transcript

    if path:
        return {profile.id: profile for profile in read_profiles(path)}
    if transcripts[0].user == "official" and run.is_file():
        lines = [(where, record) for where, record in read_objects(run) if is_official_transcript(record)]
        found = [parse_official_transcript(record, where, "")[1] for where, record in lines]
        if found:
            return {profile.id: profile for profile in found}
    return {name: find_profile(name, None) for name in dict.fromkeys(t.profile for t in transcripts)}
