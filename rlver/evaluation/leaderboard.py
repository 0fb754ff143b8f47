"""Many runs on one table. A rank is a claim: it is made only where the paired data support it, else it is a tie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.profile import Frozen
from rlver.core.transcript import Transcript, read_transcripts
from rlver.evaluation.compare import RESAMPLES, interval, profile_scores
from rlver.evaluation.statistics import summarise
from rlver.formats.sage_transcripts import is_official_transcript, parse_official_transcript


class Place(Frozen):
    """A row of the leaderboard."""

    name: str
    n: int
    """Dialogues that count."""
    score: float
    """Mean final score, 0-100."""
    success: float
    """Share of dialogues that ended at 100, 0-1."""
    failure: float
    """Share of dialogues that ended below 10, 0-1."""
    ci95: tuple[float, float]
    """95 % bootstrap interval of the score, clustered by profile."""
    rank: int
    """1 + the number of runs that are better beyond doubt: the 95 % interval of the paired difference excludes 0.
    Runs that share a rank are tied."""
    rank_ci95: tuple[int, int]
    """95 % bootstrap interval of the place by mean score, profiles resampled for all runs together; it reaches up to
    `rank` where ties share a better one."""


def rank_runs(runs: Mapping[str, Sequence[Transcript]], seed: int = 0) -> list[Place]:
    """The leaderboard, best first. Ranks rest on the profiles that all runs have scored.

    Raises:
        RlverError: a run has no scored dialogue, or the runs share no profile.
    """
    names = list(runs)
    summaries = {name: summarise(runs[name], seed) for name in names}
    means_MR = _resampled(runs, seed)
    places_MR = 1 + (means_MR[None] > means_MR[:, None] + 1e-9).sum(axis=1)
    better = [sum(_surely(other, own) for other in means_MR) for own in means_MR]
    table = []
    for i, name in enumerate(names):
        low, high = interval(places_MR[i])
        summary = summaries[name]
        table.append(
            Place(
                name=name,
                n=summary.n,
                score=summary.score,
                success=summary.success,
                failure=summary.failure,
                ci95=summary.ci95,
                rank=1 + better[i],
                rank_ci95=(min(round(low), 1 + better[i]), round(high)),
            )
        )
    return sorted(table, key=lambda place: -place.score)


def undecided(runs: Mapping[str, Sequence[Transcript]], seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of runs that have different ranks and yet cannot be told apart: being tied does not carry over from one
    pair to the next."""
    table = rank_runs(runs, seed)
    means = dict(zip(runs, _resampled(runs, seed), strict=True))
    return [
        (a.name, b.name)
        for i, a in enumerate(table)
        for b in table[i + 1 :]
        if a.rank != b.rank and not _surely(means[a.name], means[b.name])
    ]


def _resampled(runs: Mapping[str, Sequence[Transcript]], seed: int) -> np.ndarray:
    """Mean scores (runs, resamples) on the profiles that all runs have scored, resampled for all together."""
    scores = [profile_scores(transcripts) for transcripts in runs.values()]
    common = sorted(set.intersection(*(set(found) for found in scores)))
    if not common:
        raise RlverError("these runs share no profile that all of them scored, so they cannot be ranked.")
    scores_MP = np.array([[found[key] for key in common] for found in scores])
    picks_RP = np.random.default_rng(seed).integers(len(common), size=(RESAMPLES, len(common)))
    return np.stack([row[picks_RP].mean(axis=1) for row in scores_MP])


def _surely(above_R: np.ndarray, below_R: np.ndarray) -> bool:
    """Whether the 95 % interval of the paired difference lies above 0."""
    return interval(above_R - below_R)[0] > 0


def read_runs(paths: Iterable[Path]) -> dict[str, list[Transcript]]:
    """The runs in files: logs of `rlver bench`, transcripts of ours, or official transcript files, told apart.

    Each policy of a file is a run; it is named after the policy, an official one after its file, and with the file
    before it where the name comes twice.

    Raises:
        RlverError: a file is missing, broken or empty.
    """
    runs: dict[str, list[Transcript]] = {}
    for path in paths:
        found: dict[str, list[Transcript]] = {}
        for transcript in read_any(path):
            found.setdefault(transcript.policy, []).append(transcript)
        if not found:
            raise RlverError(f"{path}: no dialogues in this file.")
        for policy, transcripts in found.items():
            name = policy
            for part in (path.stem, path.parent.name, *map(str, range(2, 1000))):
                if name not in runs:
                    break
                name = f"{part}/{name}"
            runs[name] = transcripts
    return runs


def read_any(path: Path) -> list[Transcript]:
    """The transcripts of a file of either form. Raises RlverError for a broken line."""
    for _, record in read_objects(path):
        if not is_official_transcript(record):
            return read_transcripts(path)
        break
    return [parse_official_transcript(record, where, path.stem)[0] for where, record in read_objects(path)]
