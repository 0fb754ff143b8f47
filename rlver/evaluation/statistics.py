"""Scores with their uncertainty: repeats of one profile are no independent evidence, so profiles are resampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Character, ChatIntention, Frozen, Intention
from rlver.core.transcript import Transcript

RESAMPLES = 2000


class Estimate(Frozen):
    """What a set of dialogues amounts to, with 95 % bootstrap percentile intervals (low, high) clustered by profile."""

    n: int
    """Dialogues that count."""
    score: float
    """Mean final score, 0-100."""
    ci95: tuple[float, float]
    success: float
    """Share of dialogues that ended at 100, 0-1."""
    success_ci95: tuple[float, float]
    failure: float
    """Share of dialogues that ended below 10, 0-1."""
    failure_ci95: tuple[float, float]


class Summary(Estimate):
    """What a run amounts to."""

    by_intention: dict[Intention | ChatIntention, float]
    """Mean final score per hidden intention that occurs."""
    intentions: dict[Intention | ChatIntention, Estimate]
    """All of it per hidden intention that occurs."""
    characters: dict[Character, Estimate]
    """All of it per character type that occurs."""
    errors: int
    """Dialogues that ended because a model or an endpoint failed or could not be read: left out of all the above."""


def summarise(transcripts: Sequence[Transcript], seed: int = 0) -> Summary:
    """Summarise transcripts; `seed` draws the bootstrap.

    Raises:
        RlverError: no dialogue counts.
    """
    scored = [t for t in transcripts if t.stop.scored]
    if not scored:
        why = next((f" (the first: {t.error.rstrip('.')})" for t in transcripts if t.error), "")
        raise RlverError(f"none of the {len(transcripts)} dialogues can be scored: there are none or all failed{why}.")
    intentions = {
        i: estimate(group, seed)
        for i in (*Intention, *ChatIntention)
        if (group := [t for t in scored if t.intention == i])
    }
    return Summary(
        **estimate(scored, seed).model_dump(),
        by_intention={intention: found.score for intention, found in intentions.items()},
        intentions=intentions,
        characters={c: estimate(group, seed) for c in Character if (group := [t for t in scored if t.character == c])},
        errors=len(transcripts) - len(scored),
    )


def estimate(scored: Sequence[Transcript], seed: int = 0) -> Estimate:
    """Means and intervals of dialogues that all count; at least one."""
    profiles = [t.profile for t in scored]
    scores = [t.score for t in scored]
    wins, losses = [float(t.success) for t in scored], [float(t.failure) for t in scored]
    return Estimate(
        n=len(scored),
        score=_mean(scores),
        ci95=bootstrap(scores, profiles, seed),
        success=_mean(wins),
        success_ci95=bootstrap(wins, profiles, seed),
        failure=_mean(losses),
        failure_ci95=bootstrap(losses, profiles, seed),
    )


def bootstrap(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, from 2000 resamples of whole clusters."""
    groups: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    sums_C = np.array([sum(group) for group in groups.values()])
    counts_C = np.array([len(group) for group in groups.values()])
    picks_RC = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    means_R = sums_C[picks_RC].sum(axis=1) / counts_C[picks_RC].sum(axis=1)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
