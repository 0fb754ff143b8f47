"""Generalised advantage estimation over the tokens of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, gammas: Tensor, lams: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages by token (arXiv 1506.02438, equation 16).

    Args:
        rewards: (T,) reward after each token.
        values: (T,) the critic's value before each token; zeros without a critic, which leaves plain returns.
        gammas: (T,) discount from each token to the next; 1 inside a turn. The last is not used: the dialogue ends.
        lams: (T,) lambda from each token to the next; 1 inside a turn.

    Returns:
        advantages (T,) and returns (T,), the critic's targets.
    """
    advantages = torch.zeros_like(values)
    paid, value, gamma, lam = (column.numpy() for column in (rewards, values, gammas, lams))
    out = advantages.numpy()  # the same memory; a loop over numpy's numbers takes a twentieth of one over tensors
    following_advantage = following_value = value.dtype.type(0)
    for t in range(len(value) - 1, -1, -1):
        delta = paid[t] + gamma[t] * following_value - value[t]
        out[t] = following_advantage = delta + gamma[t] * lam[t] * following_advantage
        following_value = value[t]
    return advantages, advantages + values


def over_tokens(turns: Tensor, rewards: Sequence[float], gamma: float, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, discounts and lambdas of turns, spread over tokens: each is met at the last token of its turn.

    Args:
        turns: (T,) turn of each token.
    """
    last = torch.ones(len(turns), dtype=torch.bool)
    last[:-1] = turns[1:] != turns[:-1]
    ones = torch.ones(len(turns))
    return (
        torch.where(last, torch.tensor(rewards)[turns], 0.0),
        torch.where(last, gamma, ones),
        torch.where(last, lam, ones),
    )
