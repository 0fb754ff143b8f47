"""Paired comparison of two runs on the same profiles: difference, p value, effect size and power."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.core.transcript import Transcript
from rlver.evaluation.statistics import percentile_interval, profile_scores

RESAMPLES = 10_000
"""Bootstrap resamples and random sign flips of a comparison."""
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621
"""Quantiles of the normal distribution for a two-sided level of 5 % and a power of 80 %."""


class Comparison(Frozen):
    """The scores of run a minus those of run b, paired by profile."""

    n: int
    """Number of profiles that both runs scored."""
    left_out: int
    """Number of profiles that only one of the runs scored."""
    difference: float
    """Mean difference, in points."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the difference, over profiles."""
    p: float
    """p value of the two-sided sign-flip permutation test of "no difference", at least 1 / 10,001."""
    effect: float
    """Effect size: Cohen's d of the paired differences, which is their mean divided by their standard deviation. It is
    0 if all differences are equal."""
    detectable: float
    """Minimum detectable difference, in points: the true difference that a test of this many profiles finds with a
    power of 80 % at the 5 % level."""


def compare(a: Sequence[Transcript], b: Sequence[Transcript], seed: int = 0) -> Comparison:
    """Compare two runs profile by profile. The repeats of a profile are averaged first.

    Args:
        seed: of the bootstrap and of the permutation test.

    Raises:
        RlverError: the runs share fewer than two scored profiles.
    """
    scores_a, scores_b = profile_scores(a), profile_scores(b)
    common = sorted(scores_a.keys() & scores_b.keys())
    if len(common) < 2:
        raise RlverError(f"the two runs share {len(common)} scored profiles; a comparison needs at least 2.")
    differences_P = np.array([scores_a[profile] - scores_b[profile] for profile in common])
    rng = np.random.default_rng(seed)
    n, deviation = len(common), float(differences_P.std(ddof=1))
    means_R = differences_P[rng.integers(n, size=(RESAMPLES, n))].mean(axis=1)
    flipped_means_R = (rng.choice((-1.0, 1.0), size=(RESAMPLES, n)) * differences_P).mean(axis=1)
    difference = float(differences_P.mean())
    at_least_as_extreme = int((np.abs(flipped_means_R) >= abs(difference) - 1e-9).sum())
    return Comparison(
        n=n,
        left_out=len(scores_a.keys() ^ scores_b.keys()),
        difference=difference,
        ci95=percentile_interval(means_R),
        p=(at_least_as_extreme + 1) / (RESAMPLES + 1),
        effect=difference / deviation if deviation else 0.0,
        detectable=(_Z_LEVEL + _Z_POWER) * deviation / n**0.5,
    )
