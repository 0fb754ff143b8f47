"""From hidden states to log-probs, a piece at a time: logits of a large vocabulary never exist for all tokens at once.

The logits of 4,000 tokens over 152,000 entries are 2.4 GB in float32, and the log-softmax, the entropy and their
gradients are as large again. A piece is thrown away after the forward pass and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlver.inference.decoder import make_logits
from rlver.train.losses.entropy import entropy

_LOGITS = 2**26
"""Logits that exist at once, unless a number of tokens is given."""


def piece_size(vocabulary: int, logit_tokens: int) -> int:
    """Tokens of one piece; `logit_tokens` 0 leaves the choice to us."""
    return logit_tokens or max(1, _LOGITS // vocabulary)


def token_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float, logit_tokens: int = 0
) -> Tensor:
    """(N,) float32 log-prob of each target.

    Args:
        hidden: (N, hidden) states that predict the targets.
        targets: (N,) ids.
        temperature: divides the logits.
        logit_tokens: most tokens whose logits exist at once; 0 is as many as make 2**26 logits.
    """

    def piece(hidden: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (_chosen(_log_softmax(model, hidden, temperature), targets),)

    return _in_pieces(piece, model, hidden, targets, logit_tokens)[0]


def logprobs_and_entropies(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    logit_tokens: int = 0,
    spread: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of the distribution that each target was drawn from, in nats: both (N,), float32.

    Args:
        spread: whether the entropy is to have a gradient, which costs as much again.
    """

    def piece(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_softmax = _log_softmax(model, hidden, temperature)
        return _chosen(log_softmax, targets), entropy(log_softmax if spread else log_softmax.detach())

    logprobs, entropies = _in_pieces(piece, model, hidden, targets, logit_tokens)
    return logprobs, entropies


def _in_pieces(
    piece: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    logit_tokens: int,
) -> tuple[Tensor, ...]:
    size = piece_size(model.get_output_embeddings().weight.shape[0], logit_tokens)
    if len(targets) <= size:
        return piece(hidden, targets)
    parts = [
        checkpoint(piece, part, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _log_softmax(model: PreTrainedModel, hidden: Tensor, temperature: float) -> Tensor:
    logits = make_logits(model, hidden).float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _chosen(log_softmax: Tensor, targets: Tensor) -> Tensor:
    return log_softmax.gather(1, targets[:, None]).squeeze(1)
