"""Correction for a sampler that is not quite the policy which is trained: another engine, or other rounding."""

from __future__ import annotations

from torch import Tensor


def importance(trainer: Tensor, sampler: Tensor, cap: float) -> Tensor:
    """(T,) weight of each token: min(probability by the trainer / probability by the sampler, cap).

    Truncated importance sampling: unbiased below the cap, and no token can dominate (Ionides 2008; for rollout engines
    fengyao.notion.site/off-policy-rl, 2025).

    Args:
        trainer: (T,) log-probs of the sampled tokens under the trainer's weights at sampling.
        sampler: (T,) log-probs that the sampler reported.
    """
    return (trainer - sampler).exp().clamp(max=cap)
