"""Forward and backward passes over batches: hidden states, log-probabilities, entropies, gradients.

Three things differ from calling a model directly. Prefixes that the rows of a batch share are computed once.
Log-probabilities are computed from pieces of the logits, because the logits of 4,000 tokens over 152,000 entries are
2.4 GB in float32, and the log-softmax, the entropy and their gradients are as large again. And micro-batches of a small
model run in parallel on the cores of a CPU, with gradients added in the order of the micro-batches, so that the sums
are the same to the bit for any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from rlver.inference.attention import without_cudnn
from rlver.inference.compatibility import cache_argument, recomputes_layers
from rlver.inference.cores import Cores
from rlver.inference.decoder import attention_mask, make_logits, position_limit
from rlver.train.batch import Batch, Prefix, Sample, collate, micro_batches
from rlver.train.losses import entropy

_MAX_LOGITS = 2**26
"""Number of logits that exist at the same time, unless the settings give a number of tokens."""

Backward = Callable[[Tensor], None]
"""Takes a scalar loss and adds its gradients to those of the parameters."""

Part = TypeVar("Part")
Result = TypeVar("Result")


# Hidden states


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(N, hidden) the hidden states that predict the trained tokens. Logits are computed for no other tokens."""
    if batch.prefix is not None and _can_share(model, batch.ids.shape[1]):
        states = _states_behind(model, batch.prefix, batch.ids)
        return states[batch.rows, batch.sources - batch.prefix.ids.shape[1]]
    mask = None if batch.mask is None else attention_mask(model, batch.mask[:, 0], batch.positions, batch.positions)
    output = model.get_decoder()(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=mask, use_cache=False
    )
    return output.last_hidden_state[batch.rows, batch.sources]


def _can_share(model: PreTrainedModel, length: int) -> bool:
    """Whether rows of this length can be computed in two passes, the second on the keys and values of the first."""
    if model.training and recomputes_layers(model):  # recomputed layers keep no keys and values
        return False
    limit = position_limit(model.config)
    return not limit or length <= limit


def _states_behind(model: PreTrainedModel, prefix: Prefix, ids: Tensor) -> Tensor:
    """(B, L - P, hidden) last hidden states of the tokens of rows (B, L) behind their prefix."""
    depth = prefix.ids.shape[1]
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    cache = _PrefixCache(prefix.owners)
    _decode(model, cache, prefix.ids, positions[:, :depth], positions[:, :depth])
    return _decode(model, cache, ids[:, depth:], positions[:, depth:], positions)


def _decode(model: PreTrainedModel, cache: _PrefixCache, ids: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Hidden states of tokens at positions `queries` (1, n) that attend to positions `keys` (1, m).

    All rows have the same mask. Padding stands on the right, where no token attends to it.
    """
    mask = attention_mask(model, keys[:, None, :] <= queries[:, :, None], queries, keys)
    decoder = model.get_decoder()
    output = decoder(
        input_ids=ids, position_ids=queries, attention_mask=mask, use_cache=True, **cache_argument(decoder, cache)
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


class _PrefixCache(Cache):
    """Holds the keys and values of prefixes, (G, heads, P, head size) per layer, and puts them before those of rows."""

    def __init__(self, owners: Tensor) -> None:
        super().__init__(layers=[])
        self._owners = owners
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: first with the states of the prefixes, then with those of the rows."""
        if layer_idx not in self._layers:
            self._layers[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self._layers.pop(layer_idx)
        return torch.cat((self._expand(keys), key_states), 2), torch.cat((self._expand(values), value_states), 2)

    def _expand(self, states: Tensor) -> Tensor:
        """(B, heads, P, head size) the states of the prefix of each row.

        This is a matrix product because its backward pass always adds gradients in the same order. Those of indexing
        on several CPU threads and of `index_select` on a GPU do not.
        """
        one_hot = torch.nn.functional.one_hot(self._owners, len(states)).to(states.dtype)
        return torch.tensordot(one_hot, states, dims=1)

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Not used, because all positions are given explicitly."""
        return 0


# Log-probabilities and entropies


def token_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float, logit_tokens: int = 0
) -> Tensor:
    """(N,) float32 log-probability of each target.

    Args:
        hidden: (N, hidden) states that predict the targets.
        targets: (N,) token ids.
        temperature: divides the logits.
        logit_tokens: largest number of tokens whose logits exist at the same time; see `piece_size`.
    """

    def compute(hidden: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (_gather(_log_softmax(model, hidden, temperature), targets),)

    return _in_pieces(compute, model, hidden, targets, logit_tokens)[0]


def logprobs_and_entropies(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    logit_tokens: int = 0,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """(N,) log-probability of each target and (N,) entropy of its distribution in nats, both float32.

    Args:
        entropy_gradient: whether the entropy has a gradient, which doubles the cost. The others are those of
            `token_logprobs`.
    """

    def compute(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_softmax = _log_softmax(model, hidden, temperature)
        return _gather(log_softmax, targets), entropy(log_softmax if entropy_gradient else log_softmax.detach())

    logprobs, entropies = _in_pieces(compute, model, hidden, targets, logit_tokens)
    return logprobs, entropies


def piece_size(vocabulary: int, logit_tokens: int) -> int:
    """Number of tokens per piece: `logit_tokens`, or if that is 0, as many as have 2**26 logits."""
    return logit_tokens or max(1, _MAX_LOGITS // vocabulary)


def _in_pieces(
    compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    logit_tokens: int,
) -> tuple[Tensor, ...]:
    """What `compute` returns for all tokens. The logits of a piece are dropped and recomputed in the backward pass."""
    size = piece_size(model.get_output_embeddings().weight.shape[0], logit_tokens)
    if len(targets) <= size:
        return compute(hidden, targets)
    pieces = [
        checkpoint(compute, *piece, use_reentrant=False)
        for piece in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return tuple(map(torch.cat, zip(*pieces, strict=True)))


def _log_softmax(model: PreTrainedModel, hidden: Tensor, temperature: float) -> Tensor:
    logits = make_logits(model, hidden).float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _gather(log_softmax: Tensor, targets: Tensor) -> Tensor:
    return log_softmax.gather(1, targets[:, None]).squeeze(1)


# Many micro-batches


def map_batches(
    compute: Callable[[Batch], Tensor],
    samples: Sequence[Sample],
    cores: Cores,
    max_tokens: int,
    device: torch.device | str,
) -> list[Tensor]:
    """(T,) per sample: what `compute` returns, (N,) per batch, for the samples in micro-batches of `max_tokens`."""
    parts = list(micro_batches(samples, max_tokens))

    def compute_part(part: list[int]) -> Sequence[Tensor]:
        batch = collate([samples[i] for i in part], device)
        return compute(batch).cpu().split([len(samples[i].trained) for i in part])

    results: list[Tensor] = [torch.empty(0)] * len(samples)
    with without_cudnn(device):
        for part, tensors in zip(parts, cores.map(compute_part, parts), strict=True):
            for i, tensor in zip(part, tensors, strict=True):
                results[i] = tensor
    return results


def accumulate_gradients(
    compute: Callable[[Part, Backward], Result],
    parts: Iterable[Part],
    parameters: Sequence[nn.Parameter],
    cores: Cores,
) -> list[Result]:
    """What `compute` returns for each part, while the gradients of its losses are added to those of the parameters.

    `compute` passes each loss to the function that it receives. Gradients are added in the order of the parts, even if
    parts are computed in parallel.
    """
    if not cores.side_by_side:
        with without_cudnn(parameters[0].device):
            return [compute(part, Tensor.backward) for part in parts]

    def compute_apart(part: Part) -> tuple[Result, list[tuple[Tensor | None, ...]]]:
        gradients: list[tuple[Tensor | None, ...]] = []

        def backward(loss: Tensor) -> None:
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))

        return compute(part, backward), gradients

    results = []
    for result, gradients_of_losses in cores.map(compute_apart, parts):
        results.append(result)
        for gradients in gradients_of_losses:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)
    return results
