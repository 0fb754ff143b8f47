"""Scores with their uncertainty: repeats of one profile are no independent evidence, so profiles are resampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import ChatIntention, Frozen, Intention
from rlver.core.transcript import Transcript

RESAMPLES = 2000


class Summary(Frozen):
    """What a set of transcripts amounts to."""

    n: int
    """Dialogues that count."""
    score: float
    """Mean final score, 0-100."""
    success: float
    """Share of dialogues that ended at 100, 0-1."""
    failure: float
    """Share of dialogues that ended below 10, 0-1."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the score (low, high), clustered by profile."""
    by_intention: dict[Intention | ChatIntention, float]
    """Mean final score per hidden intention that occurs."""
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
    by_intention: dict[Intention | ChatIntention, list[float]] = defaultdict(list)
    for transcript in scored:
        by_intention[transcript.intention].append(transcript.score)
    return Summary(
        n=len(scored),
        score=_mean([t.score for t in scored]),
        success=_mean([float(t.success) for t in scored]),
        failure=_mean([float(t.failure) for t in scored]),
        ci95=bootstrap([t.score for t in scored], [t.profile for t in scored], seed),
        by_intention={i: _mean(by_intention[i]) for i in (*Intention, *ChatIntention) if i in by_intention},
        errors=len(transcripts) - len(scored),
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
