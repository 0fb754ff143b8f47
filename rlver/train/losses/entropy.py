"""Entropy of the distributions that tokens were drawn from."""

from __future__ import annotations

from torch import Tensor


def entropy(log_softmax: Tensor) -> Tensor:
    """Entropy in nats of each distribution; log_softmax is (N, vocabulary)."""
    return -(log_softmax.exp() * log_softmax).sum(-1)
