"""Two runs on the same profiles, two judges of the same things: is there a difference, and could one be found?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.core.transcript import Transcript

RESAMPLES = 10_000
_Z_ALPHA, _Z_POWER = 1.959964, 0.841621


class Comparison(Frozen):
    """The scores of run a minus those of run b, profile by profile."""

    n: int
    """Profiles that both scored."""
    left_out: int
    """Profiles that only one of them scored."""
    difference: float
    """Mean difference, in points."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of it, over profiles."""
    p: float
    """Two-sided sign-flip permutation test of "no difference"; never below 1 / 10,001."""
    effect: float
    """Cohen's d of the paired differences: their mean by their standard deviation; 0 if they are all equal to 0."""
    detectable: float
    """Smallest true difference that this many profiles find in four of five cases (5 % level, 80 % power)."""


class Agreement(Frozen):
    """How alike two judges order the same things."""

    n: int
    spearman: float
    """Rank correlation, -1 to 1."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of it."""
    shift: float
    """Mean of the second judge's scores minus the first's, in points."""
    shift_ci95: tuple[float, float]


def compare(a: Sequence[Transcript], b: Sequence[Transcript], seed: int = 0) -> Comparison:
    """Compare two runs. Repeats of a profile are averaged first.

    Raises:
        RlverError: they share fewer than two scored profiles.
    """
    first, second = profile_scores(a), profile_scores(b)
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        raise RlverError(f"the two runs share {len(common)} scored profiles; at least 2 are needed to compare them.")
    differences_P = np.array([first[key] - second[key] for key in common])
    rng = np.random.default_rng(seed)
    n, spread = len(common), float(differences_P.std(ddof=1))
    means_R = differences_P[rng.integers(n, size=(RESAMPLES, n))].mean(axis=1)
    flipped_R = (rng.choice((-1.0, 1.0), size=(RESAMPLES, n)) * differences_P).mean(axis=1)
    difference = float(differences_P.mean())
    extreme = int((np.abs(flipped_R) >= abs(difference) - 1e-9).sum())
    return Comparison(
        n=n,
        left_out=len(first.keys() ^ second.keys()),
        difference=difference,
        ci95=interval(means_R),
        p=(extreme + 1) / (RESAMPLES + 1),
        effect=difference / spread if spread else 0.0,
        detectable=(_Z_ALPHA + _Z_POWER) * spread / n**0.5,
    )


def agreement(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Agreement:
    """Two judges' scores of the same things, by name.

    Raises:
        RlverError: they share fewer than three.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) < 3:
        raise RlverError(f"the two judgements share {len(common)} items; at least 3 are needed to correlate them.")
    x_I, y_I = np.array([a[key] for key in common]), np.array([b[key] for key in common])
    picks_RI = np.random.default_rng(seed).integers(len(common), size=(RESAMPLES // 10, len(common)))
    drawn = [spearman(x_I[pick], y_I[pick]) for pick in picks_RI]
    return Agreement(
        n=len(common),
        spearman=spearman(x_I, y_I),
        ci95=interval(np.array(drawn)),
        shift=float((y_I - x_I).mean()),
        shift_ci95=interval((y_I - x_I)[picks_RI].mean(axis=1)),
    )


def spearman(x_I: np.ndarray, y_I: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one side does not vary."""
    ranks_2I = np.stack([mean_ranks(x_I), mean_ranks(y_I)])
    return float(np.corrcoef(ranks_2I)[0, 1]) if (ranks_2I.std(axis=1) > 0).all() else 0.0


def mean_ranks(values_I: np.ndarray) -> np.ndarray:
    """Ranks from 1 upward by value; equal values share the mean of theirs."""
    _, inverse_I, counts_V = np.unique(values_I, return_inverse=True, return_counts=True)
    ends_V = counts_V.cumsum()
    return (ends_V - (counts_V - 1) / 2)[inverse_I]


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)


def profile_scores(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """Mean score of each profile over its scored repeats."""
    scores: dict[str, list[float]] = defaultdict(list)
    for transcript in transcripts:
        if transcript.stop.scored:
            scores[transcript.profile].append(transcript.score)
    return {key: sum(values) / len(values) for key, values in scores.items()}
