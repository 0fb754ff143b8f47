"""Attention of a decoding step, which does little but read the cache.

Where several query heads share keys and values (grouped-query attention) and there is a mask, `transformers` repeats
them for each of these heads: with seven to a head, as in Qwen2.5-7B, a step moves the whole cache about ten times
instead of once. To attend with one query of seven heads is to attend with seven queries of one head, which needs no
copies.

On a CPU, several cores read a long cache sooner than one. Each of them attends for some rows, in a call of its own.
One call on several cores is not the same to the bit: PyTorch gives every core its own piece of one working memory, and
on some processors the last bit of a matrix product depends on whether its numbers begin at a multiple of 16 bytes.
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
"""Numbers, of keys, from which on reading them is worth a core of its own."""
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
    """As the model calls it: query (A, heads, 1, size), key and value (A, key heads, m, size), mask (A, 1, 1, m)."""
    rows, heads, _, size = query.shape
    queries = query.reshape(rows, key.shape[1], -1, size)
    mask = attention_mask.expand(rows, key.shape[1], queries.shape[2], -1)

    def attend(part: slice) -> Tensor:
        return scaled_dot_product_attention(queries[part], key[part], value[part], mask[part], dropout, scale=scaling)

    cores = _cores.get()
    if cores and len(parts := equal_parts(rows, key.numel() // _PART)) > 1:
        out = torch.cat(list(cores.map(attend, parts)))
    else:
        out = attend(slice(None))
    return out.reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(_DECODING, _attend)


@contextmanager
def decoding(model: PreTrainedModel, cores: Cores | None = None) -> Iterator[None]:
    """Inside, a model that attends with PyTorch's own attention decodes one token a row, with a mask, in this way.

    Args:
        cores: of a CPU; those of a model whose passes are independent share out the rows.
    """
    config = model.config
    shared = cores if cores and cores.independent else None
    if config._attn_implementation != _PLAIN or (shared is None and _heads_alike(config)):
        yield
        return
    config._attn_implementation = _DECODING
    token = _cores.set(shared)
    try:
        yield
    finally:
        _cores.reset(token)
        config._attn_implementation = _PLAIN


def _heads_alike(config: Any) -> bool:
    """Whether every query head has keys of its own."""
    return getattr(config, "num_key_value_heads", None) in (None, config.num_attention_heads)
