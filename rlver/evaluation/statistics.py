"""Scores with their uncertainty.

Repeats of one profile are not independent of each other, so every interval resamples whole profiles (a clustered
bootstrap) instead of dialogues.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Character, ChatIntention, Frozen, Intention
from rlver.core.transcript import Transcript

RESAMPLES = 2000
"""Bootstrap resamples behind each interval of a summary."""


class Estimate(Frozen):
    """Scores of a set of dialogues, with 95 % bootstrap percentile intervals (low, high) clustered by profile."""

    n: int
    """Number of scored dialogues."""
    score: float
    """Mean final score, 0-100."""
    ci95: tuple[float, float]
    """Interval of `score`."""
    success: float
    """Share of dialogues that ended at 100, 0-1."""
    success_ci95: tuple[float, float]
    """Interval of `success`."""
    failure: float
    """Share of dialogues that ended below 10, 0-1."""
    failure_ci95: tuple[float, float]
    """Interval of `failure`."""


class Summary(Estimate):
    """Scores of a run: over all dialogues, by hidden intention and by character type."""

    by_intention: dict[Intention | ChatIntention, float]
    """Mean final score of each hidden intention that occurs, 0-100."""
    intentions: dict[Intention | ChatIntention, Estimate]
    """The estimate of each hidden intention that occurs."""
    characters: dict[Character, Estimate]
    """The estimate of each character type that occurs."""
    errors: int
    """Number of dialogues that ended because a model or an endpoint failed or could not be read. All figures above
    leave them out."""


def summarise(transcripts: Sequence[Transcript], seed: int = 0) -> Summary:
    """Summarise the transcripts of a run.

    Args:
        seed: of the bootstrap.

    Raises:
        RlverError: none of the dialogues has a score.
    """
    scored = [t for t in transcripts if t.stop.scored]
    if not scored:
        reason = next((f" (the first: {t.error.rstrip('.')})" for t in transcripts if t.error), "")
        raise RlverError(
            f"none of the {len(transcripts)} dialogues can be scored: there are none, or all of them failed{reason}."
        )
    intentions = {
        i: estimate(group, seed)
        for i in (*Intention, *ChatIntention)
        if (group := [t for t in scored if t.intention == i])
    }
    return Summary(
        **estimate(scored, seed).model_dump(),
        by_intention={intention: group.score for intention, group in intentions.items()},
        intentions=intentions,
        characters={c: estimate(group, seed) for c in Character if (group := [t for t in scored if t.character == c])},
        errors=len(transcripts) - len(scored),
    )


def estimate(scored: Sequence[Transcript], seed: int = 0) -> Estimate:
    """The means of scored dialogues with their intervals.

    Args:
        scored: at least one dialogue, all of them with a score.
        seed: of the bootstrap.
    """
    profiles = [t.profile for t in scored]
    scores = [t.score for t in scored]
    successes, failures = [float(t.success) for t in scored], [float(t.failure) for t in scored]
    return Estimate(
        n=len(scored),
        score=_mean(scores),
        ci95=bootstrap_interval(scores, profiles, seed),
        success=_mean(successes),
        success_ci95=bootstrap_interval(successes, profiles, seed),
        failure=_mean(failures),
        failure_ci95=bootstrap_interval(failures, profiles, seed),
    )


def bootstrap_interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap percentile interval of the mean, from 2000 resamples of whole clusters.

    Args:
        clusters: the cluster of each value, such as the id of its profile.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    sums_C = np.array([sum(group) for group in groups.values()])
    counts_C = np.array([len(group) for group in groups.values()])
    picks_RC = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    return percentile_interval(sums_C[picks_RC].sum(axis=1) / counts_C[picks_RC].sum(axis=1))


def percentile_interval(values_R: np.ndarray) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile: the 95 % interval of a statistic from its values on R resamples."""
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)


def profile_scores(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """The mean score of each profile over its scored repeats, 0-100, by the profile's id."""
    scores: dict[str, list[float]] = defaultdict(list)
    for transcript in transcripts:
        if transcript.stop.scored:
            scores[transcript.profile].append(transcript.score)
    return {profile: sum(values) / len(values) for profile, values in scores.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
