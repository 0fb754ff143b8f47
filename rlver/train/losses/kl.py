"""Estimates of the divergence from the starting policy. Tensors are (N,): one entry per trained token."""

from __future__ import annotations

from torch import Tensor


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference): r - 1 - log r with r = reference / policy."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio
