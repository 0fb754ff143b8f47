"""Estimates of the divergence from the starting policy. Tensors are (N,): one entry per trained token."""

from __future__ import annotations

from torch import Tensor

from rlver.train.settings import KlEstimator


def kl_divergence(logprobs: Tensor, reference: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """The estimate at each token, in nats."""
    log_ratio = reference - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return log_ratio.exp() - 1 - log_ratio
