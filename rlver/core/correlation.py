"""Correlation coefficients. Shape suffixes: I items, V distinct values."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pearson(x_I: Array, y_I: Array) -> float:
    """Pearson's correlation of two arrays; 0 if one of them is constant or there are fewer than two items."""
    if len(x_I) < 2 or x_I.std() == 0 or y_I.std() == 0:
        return 0.0
    return float(np.corrcoef(x_I, y_I)[0, 1])


def spearman(x_I: Array, y_I: Array) -> float:
    """Spearman's rank correlation of two arrays, with mean ranks for ties; 0 if one of them is constant."""
    return pearson(mean_ranks(x_I), mean_ranks(y_I))


def mean_ranks(values_I: Array) -> Array:
    """The ascending ranks of the values, from 1; equal values share the mean of their ranks."""
    _, inverse_I, counts_V = np.unique(values_I, return_inverse=True, return_counts=True)
    last_ranks_V = counts_V.cumsum()
    ranks_I: Array = (last_ranks_V - (counts_V - 1) / 2)[inverse_I]
    return ranks_I
