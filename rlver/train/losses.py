"""Losses of policy and critic, token by token. All tensors are (N,): one entry per trained token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated, and whether each token was clipped."""
    ratio = (logprobs - old).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, clipped), (clipped < plain).float()


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of the critic; a value that moved more than `clip` earns nothing by it."""
    moved = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (moved - returns) ** 2)


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference): r - 1 - log r with r = reference / policy."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio


def entropy(log_softmax: Tensor) -> Tensor:
    """Entropy in nats of each distribution; log_softmax is (N, vocabulary)."""
    return -(log_softmax.exp() * log_softmax).sum(-1)
