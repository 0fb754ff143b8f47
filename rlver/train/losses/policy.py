"""The policy's loss, token by token. Tensors are (N,): one entry per trained token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated, and whether each token was clipped."""
    ratio = (logprobs - old).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, clipped), (clipped < plain).float()
