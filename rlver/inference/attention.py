"""Attention kernels: a cheaper form for decoding steps, and a way to keep cuDNN out.

A decoding step mostly reads the KV cache. With grouped-query attention and a mask, `transformers` first repeats the
shared keys and values for each query head. In Qwen2.5-7B, seven query heads share a key head, so a step moves the whole
cache about ten times instead of once. Attending with one query of seven heads equals attending with seven queries of
one head, which needs no copies.

On a CPU, several cores read a long cache faster than one. Each core attends for some of the rows in a call of its own.
A single call on several cores would not be identical to the bit: PyTorch gives every core a piece of one shared buffer,
and on some processors the last bit of a matrix product depends on whether its operands start at a multiple of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rlver.inference.cores import Cores, equal_parts

_PLAIN, _DECODING = "sdpa", "sdpa_decoding"
_PART = 500_000
"""Size of the keys, in numbers, that is worth a core of its own."""
_cores: ContextVar[Cores | None] = ContextVar("cores", default=None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as the model calls it.

    Args:
        query: (A, heads, 1, size).
        key: (A, key heads, m, size); `value` likewise.
        attention_mask: (A, 1, 1, m).
    """
    rows, heads, _, size = query.shape
    queries = query.reshape(rows, key.shape[1], -1, size)
    mask = attention_mask.expand(rows, key.shape[1], queries.shape[2], -1)

    def attend(part: slice) -> Tensor:
        return scaled_dot_product_attention(queries[part], key[part], value[part], mask[part], dropout, scale=scaling)

    cores = _cores.get()
    if cores and len(parts := equal_parts(rows, key.numel() // _PART)) > 1:
        out = torch.cat(list(cores.map(attend, parts)))
    else:
        out = scaled_dot_product_attention(queries, key, value, mask, dropout, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[3]), None


# transformers looks attention functions up by name in a global registry. Adding a name changes nothing for models that
# do not use it.
AttentionInterface.register(_DECODING, _attend)


@contextmanager
def decoding(model: PreTrainedModel, cores: Cores | None = None) -> Iterator[None]:
    """Use the cheaper attention while the block runs.

    Every call of the model must decode one token a row, with a mask. A model whose attention is not PyTorch's own, or
    that gains nothing, is left as it is.

    Args:
        cores: CPU cores among which the rows are divided, if passes of the model are independent.
    """
    config = model.config
    shared = cores if cores and cores.independent else None
    if config._attn_implementation != _PLAIN or (shared is None and not _shares_keys(config)):
        yield
        return
    config._attn_implementation = _DECODING
    token = _cores.set(shared)
    try:
        yield
    finally:
        _cores.reset(token)
        config._attn_implementation = _PLAIN


@contextmanager
def without_cudnn(device: torch.device | str) -> Iterator[None]:
    """Keep PyTorch's attention off cuDNN while the block runs. On a CPU this does nothing.

    cuDNN plans a kernel for every new shape, and the shapes of dialogues rarely repeat. A block that trains must cover
    the backward pass too, because gradient checkpointing computes attention again there.
    """
    if torch.device(device).type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def _shares_keys(config: Any) -> bool:
    """Whether several query heads share one key head."""
    return getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
