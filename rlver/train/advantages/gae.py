"""Generalised advantage estimation, with a critic."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-6


def gae(rewards: Tensor, values: Tensor, gammas: Tensor, lams: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens of one dialogue (arXiv 1506.02438, equation 16).

    Args:
        rewards: (T,) reward after each token.
        values: (T,) the critic's value before each token.
        gammas: (T,) discount from each token to the next; 1 inside a turn. The last is not used: the dialogue ends.
        lams: (T,) lambda from each token to the next; 1 inside a turn.

    Returns:
        advantages (T,) and returns (T,), the critic's targets.
    """
    advantages = torch.zeros_like(values)
    following_advantage = following_value = torch.zeros(())
    for t in range(len(values) - 1, -1, -1):
        delta = rewards[t] + gammas[t] * following_value - values[t]
        advantages[t] = following_advantage = delta + gammas[t] * lams[t] * following_advantage
        following_value = values[t]
    return advantages, advantages + values


def whiten(values: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and standard deviation 1."""
    return (values - values.mean()) / (values.std(correction=0) + _EPSILON)
