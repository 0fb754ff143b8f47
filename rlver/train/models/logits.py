"""From hidden states to log-probs, a piece at a time: logits of a large vocabulary never exist for all tokens at once.

The logits of 4,000 tokens over 152,000 entries are 2.4 GB in float32, and the log-softmax, the entropy and their
gradients are as large again. A piece is thrown away after the forward pass and made again in the backward pass.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlver.policies.decoder import make_logits
from rlver.train.losses.entropy import entropy

_LOGITS = 2**26
"""Logits that exist at once, unless a number of tokens is given."""


def piece_size(vocabulary: int, logit_tokens: int) -> int:
    """Tokens of one piece; `logit_tokens` 0 leaves the choice to us."""
    return logit_tokens or max(1, _LOGITS // vocabulary)


def token_logprobs(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    logit_tokens: int = 0,
    spread: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and entropy of the distribution that it was drawn from, in nats: both (N,), float32.

    Args:
        hidden: (N, hidden) states that predict the targets.
        targets: (N,) ids.
        temperature: divides the logits.
        logit_tokens: most tokens whose logits exist at once; 0 is as many as make 2**26 logits.
        spread: whether the entropy is to have a gradient, which costs as much again.
    """
    size = piece_size(model.get_output_embeddings().weight.shape[0], logit_tokens)
    piece = partial(_piece, model, temperature, spread)
    if len(targets) <= size:
        return piece(hidden, targets)
    pairs = [
        checkpoint(piece, part, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, spreads = zip(*pairs, strict=True)
    return torch.cat(logprobs), torch.cat(spreads)


def _piece(
    model: PreTrainedModel, temperature: float, spread: bool, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    logits = make_logits(model, hidden).float()
    log_softmax = torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    return log_softmax.gather(1, targets[:, None]).squeeze(1), entropy(log_softmax if spread else log_softmax.detach())
