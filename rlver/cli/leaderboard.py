"""`rlver leaderboard`, `compare`, `judges` and `rejudge`: statistically sound conclusions about policies and judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.cli.connect import AttemptsOption, CacheOption, ConcurrencyOption, Connections, RateOption, TimeoutOption
from rlver.cli.console import show
from rlver.cli.options import (
    TRANSCRIPTS_HELP,
    JsonOption,
    SeedOption,
    TranscriptsArgument,
    UserOption,
    UserTypeOption,
)
from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rlver.core.profile import Profile
    from rlver.core.transcript import Transcript
    from rlver.evaluation.rejudge import Drift

Runs = Mapping[str, Sequence["Transcript"]]
"""Transcripts by the name of their run."""


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (leaderboard, compare, judges, rejudge):
        app.command(command.__name__, rich_help_panel="Evaluate")(command)


def leaderboard(files: TranscriptsArgument, seed: SeedOption = 0, as_json: JsonOption = False) -> None:
    """Rank runs. Runs that the data cannot tell apart share a rank and are marked as ties.

    Every policy in a file is a run.

    Examples:

      rlver leaderboard runs/bench/a runs/bench/b

      rlver leaderboard transcripts/*.jsonl --json
    """
    from rlver.evaluation.leaderboard import indistinguishable_pairs, rank_runs
    from rlver.text.table import Column, Table

    runs = _read(files)
    places = rank_runs(runs, seed)
    if as_json:
        typer.echo(json.dumps([place.model_dump(mode="json") for place in places], ensure_ascii=False, indent=2))
        return
    ranks = [place.rank for place in places]
    table = Table(
        Column("rank"),
        Column("95 %"),
        Column("policy", "name"),
        *map(Column, ("score", "95 %", "success", "failure", "n")),
        Column("", "name"),
    )
    for place in places:
        low, high = place.ci95
        table.add(
            str(place.rank),
            "{}-{}".format(*place.rank_ci95),
            place.name,
            f"{place.score:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{100 * place.success:.0f} %",
            f"{100 * place.failure:.0f} %",
            str(place.n),
            "tie" if ranks.count(place.rank) > 1 else "",
        )
    show(table)
    for rank in sorted({rank for rank in ranks if ranks.count(rank) > 1}):
        show(f"Tie for {rank}: {', '.join(place.name for place in places if place.rank == rank)}")
    if pairs := [f"{a} and {b}" for a, b in indistinguishable_pairs(runs, seed)]:
        show(f"Cannot be told apart in spite of different ranks: {'; '.join(pairs)}")
    show(*_cautions(runs))


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help=TRANSCRIPTS_HELP, show_default=False)],
    second: Annotated[
        Path, typer.Argument(metavar="OTHER_RUN", help="Another run on the same profiles.", show_default=False)
    ],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs profile by profile.

    Prints the difference with its 95 % interval, p value and effect size, and the minimum detectable difference: the
    true difference that such a comparison would detect with a power of 80 %.

    Example:

      rlver compare runs/bench/before/1-policy.jsonl runs/bench/after/1-policy.jsonl
    """
    from rlver.evaluation.compare import compare as compare_pair

    runs = [_read_one(path) for path in (first, second)]
    comparison = compare_pair(runs[0], runs[1], seed)
    if as_json:
        typer.echo(comparison.model_dump_json(indent=2))
        return
    low, high = comparison.ci95
    verdict = "differ" if comparison.p < 0.05 else "cannot be told apart"
    show(
        f"{first} minus {second}: {comparison.difference:+.1f} points (95 %: {low:+.1f} to {high:+.1f}), "
        f"p = {comparison.p:.4f}, effect d = {comparison.effect:+.2f}; on {comparison.n} profiles they {verdict}.\n"
        f"Minimum detectable difference (power 80 %): {comparison.detectable:.1f} points."
    )
    if comparison.left_out:
        show(f"Left out: {comparison.left_out} profiles that only one of them scored.")
    show(*_cautions({"1": runs[0], "2": runs[1]}))


def judges(
    first: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder (or file) of runs scored by one judge.", show_default=False)
    ],
    second: Annotated[
        Path,
        typer.Argument(
            metavar="OTHER_FOLDER", help="Runs of the same names scored by another judge.", show_default=False
        ),
    ],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure how well two judges agree: rank correlations over policies (if there are three) and over dialogues.

    Runs are matched by name, dialogues by run and profile. Each judge also played its own user here, so the dialogues
    differ, too. `rlver rejudge` lets another judge judge the same dialogues.

    Example:

      rlver judges transcripts/deepseek-v3 transcripts/gpt-4o
    """
    from rlver.evaluation.agreement import agreement
    from rlver.evaluation.statistics import profile_scores

    sides = [_read([path]) for path in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise RlverError(
            f"{first} and {second} have no run of the same name ({', '.join(sides[0])}; {', '.join(sides[1])})."
        )
    scores = [{name: profile_scores(side[name]) for name in common} for side in sides]
    by_dialogue = [{f"{n}/{p}": value for n, by in side.items() for p, value in by.items()} for side in scores]
    result: dict[str, Any] = {
        "runs": common,
        "dialogues": agreement(by_dialogue[0], by_dialogue[1], seed).model_dump(),
    }
    if len(common) >= 3:
        means = [{name: sum(by.values()) / len(by) for name, by in side.items()} for side in scores]
        result["models"] = agreement(means[0], means[1], seed).model_dump()
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
        return
    for key, name in (("models", "policies"), ("dialogues", "dialogues")):
        if part := result.get(key):
            (low, high), (shift_low, shift_high) = part["ci95"], part["shift_ci95"]
            show(
                f"Over {part['n']} {name}: Spearman {part['spearman']:.2f} (95 %: {low:.2f} to {high:.2f}); "
                f"the second judge gives {part['shift']:+.1f} points (95 %: {shift_low:+.1f} to {shift_high:+.1f})."
            )
    if "models" not in result:
        show(f"Both have only {len(common)} runs ({', '.join(common)}); a rank correlation over policies needs 3.")


def rejudge(
    files: TranscriptsArgument,
    user: UserOption,
    user_type: UserTypeOption = "vanilla",
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of the profiles.  [default: those in official transcripts, or the built-in ones]"
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Use only the first N dialogues of each run.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL file to write, with both judgements of every reply.")
    ] = None,
    seed: SeedOption = 0,
    concurrency: ConcurrencyOption = 32,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 90.0,
    attempts: AttemptsOption = 6,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the replies of runs again, each in its dialogue as recorded, and measure how the judgement has changed.

    Answers come from a cache only if --cache names one, because a cache would hide that a judge has changed.

    Examples:

      rlver rejudge runs/bench/a/1-policy.jsonl --user challenging

      rlver rejudge runs/bench/a --user openai:deepseek-chat@https://api.deepseek.com --out drift.jsonl
    """
    from rlver.core.jsonl import write_objects
    from rlver.evaluation.rejudge import drift
    from rlver.evaluation.rejudge import rejudge as judge_again
    from rlver.llm import Limits
    from rlver.users.load import load_user

    runs = {name: transcripts[:n] for name, transcripts in _read(files).items()}
    languages = {transcript.language for transcripts in runs.values() for transcript in transcripts}
    if len(languages) > 1:
        raise RlverError("these runs are in several languages; judge those of one language at a time.")
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache)
    judge = load_user(user, languages.pop(), user_type=user_type, connect=connections.connect)
    connections.check()
    known = _profiles(files, runs, profiles)
    judged = {name: judge_again(transcripts, known, judge, seed, concurrency) for name, transcripts in runs.items()}
    if out:
        write_objects(out, [item for items in judged.values() for item in items])
    changes = {name: drift(items) for name, items in judged.items()}
    if as_json:
        typer.echo(
            json.dumps([{"run": name} | change.model_dump() for name, change in changes.items()], ensure_ascii=False)
        )
        return
    _show_drift(changes, judge.identity)


def _show_drift(changes: Mapping[str, Drift], judge: str) -> None:
    from rlver.text.table import Column, Table

    headings = ("replies", "failed", "difference", "95 %", "same sign", "Spearman", "95 %")
    table = Table(
        Column("run", "name"),
        *map(Column, headings),
        title=f"Judged again by {judge}",
        caption="difference: mean change of the emotion now minus as recorded, in points a reply; "
        "failed: replies without a usable verdict",
    )
    for name, change in changes.items():
        (low, high), (rank_low, rank_high) = change.ci95, change.spearman_ci95
        table.add(
            name,
            str(change.n),
            str(change.failed),
            f"{change.difference:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
            f"{100 * change.same_direction:.0f} %",
            f"{change.spearman:.2f}",
            f"{rank_low:.2f}-{rank_high:.2f}",
        )
    show(table)


def _read(paths: Sequence[Path]) -> dict[str, list[Transcript]]:
    from rlver.evaluation.run_files import read_runs

    return read_runs(_expand(paths))


def _expand(paths: Sequence[Path]) -> list[Path]:
    """The files, with each folder replaced by the files in it."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise RlverError(f"{path}: no .jsonl files in this folder.")
        files += inside
    return files


def _read_one(path: Path) -> list[Transcript]:
    runs = _read([path])
    if len(runs) > 1:
        raise RlverError(f"{path}: holds several runs ({', '.join(runs)}); name the file of one.")
    return next(iter(runs.values()))


def _cautions(runs: Runs) -> list[str]:
    """Warnings about scores that are not comparable."""
    lines = []
    for field in ("user", "preset", "language"):
        values = sorted({str(getattr(t, field)) for transcripts in runs.values() for t in transcripts})
        if len(values) > 1:
            lines.append(
                f"Caution: these runs differ in their {field} ({', '.join(values)}); their scores are not comparable."
            )
    failed = sum(not t.stop.scored for transcripts in runs.values() for t in transcripts)
    if failed:
        lines.append(f"Not scored: {failed} dialogues in which a model or an endpoint failed.")
    return lines


def _profiles(paths: Sequence[Path], runs: Runs, file: Path | None) -> dict[str, Profile]:
    """The profiles of these runs: from the given file, from official transcripts themselves, or generated again."""
    from rlver.core.jsonl import read_objects
    from rlver.evaluation.profiles import find_profile
    from rlver.formats.profile_files import read_profiles
    from rlver.formats.sage_transcripts import is_official_transcript, parse_official_transcript

    if file:
        return {profile.id: profile for profile in read_profiles(file)}
    profiles: dict[str, Profile] = {}
    for path in _expand(paths):
        for where, record in read_objects(path):
            if not is_official_transcript(record):
                break
            profile = parse_official_transcript(record, where, "")[1]
            profiles[profile.id] = profile
    names = {transcript.profile for transcripts in runs.values() for transcript in transcripts}
    return profiles | {name: find_profile(name) for name in sorted(names - profiles.keys())}
