"""The policy's loss, token by token. Tensors are (N,): one entry per trained token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated, and whether each token was clipped.

    Args:
        clip: how far below 1 the ratio of probabilities still earns something.
        clip_high: how far above 1; None: as far as below. More than that lets rare tokens grow ("clip-higher",
            arXiv 2503.14476, equation 10).
        dual_clip: a token that was bad costs at most so many times its advantage, however likely it has become
            (arXiv 1912.09729, equation 5); None: no limit.
    """
    ratio = (logprobs - old).exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * advantages
    gain = torch.minimum(plain, clipped)
    cut = clipped < plain
    if dual_clip is not None:
        least = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        cut = cut | (gain < least)
        gain = torch.maximum(gain, least)
    return -gain, cut.float()
