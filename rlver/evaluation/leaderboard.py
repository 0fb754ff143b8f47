"""Several runs in one table. A better rank is given only where the paired data support it; otherwise runs are tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.core.transcript import Transcript
from rlver.evaluation.statistics import percentile_interval, profile_scores, summarise

RESAMPLES = 10_000
"""Bootstrap resamples of the profiles behind the ranks."""


class LeaderboardRow(Frozen):
    """One run on the leaderboard."""

    name: str
    """Name of the run."""
    n: int
    """Number of scored dialogues."""
    score: float
    """Mean final score, 0-100."""
    success: float
    """Share of dialogues that ended at 100, 0-1."""
    failure: float
    """Share of dialogues that ended below 10, 0-1."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the score, clustered by profile."""
    rank: int
    """1 + the number of runs that are significantly better: the 95 % interval of the paired difference is above 0. Runs
    of the same rank are tied."""
    rank_ci95: tuple[int, int]
    """95 % bootstrap interval of the position by mean score, with the same resampled profiles for all runs. It is
    extended to `rank` if ties give the run a better rank."""


def rank_runs(runs: Mapping[str, Sequence[Transcript]], seed: int = 0) -> list[LeaderboardRow]:
    """Rank runs on the profiles that all of them have scored. Returns the rows by descending score.

    Args:
        runs: the transcripts of each run by its name.
        seed: of the bootstrap.

    Raises:
        RlverError: a run has no scored dialogue, or there is no profile that all runs have scored.
    """
    names = list(runs)
    summaries = {name: summarise(runs[name], seed) for name in names}
    means_MR = _resampled_means(runs, seed)
    positions_MR = 1 + (means_MR[None] > means_MR[:, None] + 1e-9).sum(axis=1)
    ranks = [1 + sum(_is_better(other_R, own_R) for other_R in means_MR) for own_R in means_MR]
    rows = []
    for name, rank, positions_R in zip(names, ranks, positions_MR, strict=True):
        low, high = percentile_interval(positions_R)
        summary = summaries[name]
        rows.append(
            LeaderboardRow(
                name=name,
                n=summary.n,
                score=summary.score,
                success=summary.success,
                failure=summary.failure,
                ci95=summary.ci95,
                rank=rank,
                rank_ci95=(min(round(low), rank), round(high)),
            )
        )
    return sorted(rows, key=lambda row: -row.score)


def indistinguishable_pairs(runs: Mapping[str, Sequence[Transcript]], seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of runs that have different ranks although their paired difference is not significant.

    Such pairs exist because ties are not transitive: a and b can be tied, b and c too, and a still be better than c.
    """
    rows = rank_runs(runs, seed)
    means = dict(zip(runs, _resampled_means(runs, seed), strict=True))
    return [
        (a.name, b.name)
        for i, a in enumerate(rows)
        for b in rows[i + 1 :]
        if a.rank != b.rank and not _is_better(means[a.name], means[b.name])
    ]


def _resampled_means(runs: Mapping[str, Sequence[Transcript]], seed: int) -> np.ndarray:
    """Mean scores (runs, resamples) on the profiles that all runs have scored. All runs share the resamples."""
    scores = [profile_scores(transcripts) for transcripts in runs.values()]
    common = sorted(set.intersection(*(set(by_profile) for by_profile in scores)))
    if not common:
        raise RlverError("these runs share no profile that all of them have scored, so they cannot be ranked.")
    scores_MP = np.array([[by_profile[profile] for profile in common] for by_profile in scores])
    picks_RP = np.random.default_rng(seed).integers(len(common), size=(RESAMPLES, len(common)))
    return np.stack([scores_P[picks_RP].mean(axis=1) for scores_P in scores_MP])


def _is_better(a_R: np.ndarray, b_R: np.ndarray) -> bool:
    """Whether the 95 % interval of the paired difference a - b is above 0, given the means on R resamples."""
    return percentile_interval(a_R - b_R)[0] > 0
