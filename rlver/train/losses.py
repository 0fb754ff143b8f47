"""The terms of the loss, token by token, and how much each token counts.

Tensors are (N,): one entry per trained token of a micro-batch. Functions that work dialogue by dialogue use (T,): one
entry per sampled token of one dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlver.train.config import KlEstimator, Weighting


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, negated, and whether each token was clipped (arXiv 1707.06347, equation 7).

    Args:
        old_logprobs: log-probabilities before the first update of the step.
        clip: how far below 1 the probability ratio may fall before it is clipped.
        clip_high: how far above 1 it may rise; None: the same. A larger value lets rare tokens grow ("clip-higher",
            arXiv 2503.14476, equation 10).
        dual_clip: upper bound of the loss of a token with a negative advantage, as a multiple of that advantage
            (arXiv 1912.09729, equation 5); None: unbounded.
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * advantages
    objective = torch.minimum(unclipped, clipped)
    was_clipped = clipped < unclipped
    if dual_clip is not None:
        lower_bound = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        was_clipped = was_clipped | (objective < lower_bound)
        objective = torch.maximum(objective, lower_bound)
    return -objective, was_clipped.float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of the critic; moving a value by more than `clip` lowers the loss no further."""
    error = (values - returns) ** 2
    if clip is None:
        return 0.5 * error
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(error, (clipped - returns) ** 2)


def kl_divergence(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Estimate of KL(policy || reference) at each token, in nats. See `KlEstimator` for the formulas."""
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return log_ratio.exp() - 1 - log_ratio


def entropy(log_softmax: Tensor) -> Tensor:
    """(N,) entropy of each distribution, in nats.

    Args:
        log_softmax: (N, vocabulary) log-probabilities.
    """
    return -(log_softmax.exp() * log_softmax).sum(-1)


def imitation_weights(rewards: Tensor, temperature: float) -> Tensor:
    """(B,) weight of each dialogue in the imitation loss: exp(reward / temperature), with mean 1 over the batch.

    Reward-weighted regression (Peters and Schaal 2007, equation 7), which RLVER mentions as an auxiliary loss.

    Args:
        rewards: (B,) final rewards.
        temperature: in units of reward; the smaller it is, the more the best dialogues dominate.
    """
    return len(rewards) * torch.softmax(rewards / temperature, dim=0)


def imitation_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """(N,) negative log-likelihood of each sampled token times the weight of its dialogue. It is never clipped."""
    return -weights * logprobs


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """(T,) correction for a sampler that differs from the trained policy: min(probability ratio, cap).

    Truncated importance sampling is unbiased below the cap, and no token can dominate (Ionides 2008; for rollout
    engines see fengyao.notion.site/off-policy-rl, 2025).

    Args:
        logprobs: (T,) under the policy before the first update of the step.
        sampler_logprobs: (T,) as the sampler reported them.
    """
    return (logprobs - sampler_logprobs).exp().clamp(max=cap)


def token_weights(turns: Sequence[Tensor], weighting: Weighting, max_tokens: int) -> list[Tensor]:
    """(T,) weights of the tokens of each of the B dialogues of an update; losses are summed with these weights.

    Args:
        turns: (T,) turn of each token.
        max_tokens: largest possible number of tokens of a dialogue, for `constant`.
    """
    count = len(turns)
    if weighting == "dialogue":
        return [torch.full((len(row),), 1 / len(row)) / count for row in turns]
    if weighting == "turn":
        sizes = [torch.bincount(row) for row in turns]
        replies = sum(int((size > 0).sum()) for size in sizes)
        return [1 / size[row] / replies for row, size in zip(turns, sizes, strict=True)]
    total = sum(map(len, turns)) if weighting == "token" else count * max_tokens
    return [torch.full((len(row),), 1 / total) for row in turns]
