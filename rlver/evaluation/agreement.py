"""Agreement of two judges: how similarly they rank the same items, and how far apart their scores are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlver.core.correlation import spearman
from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.evaluation.statistics import percentile_interval

RESAMPLES = 1000
"""Bootstrap resamples behind the interval of a rank correlation."""


class Agreement(Frozen):
    """How well the scores of two judges agree."""

    n: int
    """Number of items that both judges scored."""
    spearman: float
    """Spearman's rank correlation, -1 to 1."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the rank correlation, over items."""
    shift: float
    """Mean of the second judge's scores minus the first's, in points."""
    shift_ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the shift, over items."""


def agreement(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Agreement:
    """Measure how well two judges agree on the items that both have scored.

    Args:
        a: the first judge's scores by the item's name.
        b: the second judge's scores.
        seed: of the bootstrap.

    Raises:
        RlverError: the judges share fewer than three items.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) < 3:
        raise RlverError(f"the two judges share {len(common)} items; a rank correlation needs at least 3.")
    a_I, b_I = np.array([a[name] for name in common]), np.array([b[name] for name in common])
    picks_RI = np.random.default_rng(seed).integers(len(common), size=(RESAMPLES, len(common)))
    correlations_R = np.array([spearman(a_I[picks_I], b_I[picks_I]) for picks_I in picks_RI])
    return Agreement(
        n=len(common),
        spearman=spearman(a_I, b_I),
        ci95=percentile_interval(correlations_R),
        shift=float((b_I - a_I).mean()),
        shift_ci95=percentile_interval((b_I - a_I)[picks_RI].mean(axis=1)),
    )
