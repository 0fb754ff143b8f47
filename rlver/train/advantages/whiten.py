"""Whitening."""

from __future__ import annotations

from torch import Tensor

from rlver.train.advantages.peers import EPSILON


def whiten(values: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and standard deviation 1."""
    return (values - values.mean()) / (values.std(correction=0) + EPSILON)
