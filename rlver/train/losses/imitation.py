"""Reward-weighted imitation: an auxiliary loss that copies the dialogues that went well, clipped by nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def imitation_weights(rewards: Tensor, temperature: float) -> Tensor:
    """(B,) how much each dialogue is copied: exp(reward / temperature), with mean 1 over the batch.

    Reward-weighted regression (Peters and Schaal 2007, equation 7); RLVER names such a loss as auxiliary.

    Args:
        rewards: (B,) final rewards in [0, 1].
        temperature: in units of reward; the smaller, the more the best alone are copied.
    """
    return len(rewards) * torch.softmax(rewards / temperature, dim=0)


def imitation_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """(N,) negative log-likelihood of each sampled token times the weight of its dialogue."""
    return -weights * logprobs
