"""Attention of a decoding step, which does little but read the cache.

Where several query heads share keys and values (grouped-query attention) and there is a mask, `transformers` repeats
them for each of these heads: with seven to a head, as in Qwen2.5-7B, a step moves the whole cache about ten times
instead of once. To attend with one query of seven heads is to attend with seven queries of one head, which needs no
copies.

On a CPU, several cores read sooner than one. Each head of each row is computed by itself, so the numbers do not depend
on who computes it, even where all else has one core to stay the same to the bit.
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

_PLAIN, _DECODING = "sdpa", "sdpa_decoding"
_cores: ContextVar[int] = ContextVar("cores", default=1)


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
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, _cores.get()))
    try:
        out = scaled_dot_product_attention(queries, key, value, mask, dropout, scale=scaling)
    finally:
        torch.set_num_threads(before)
    return out.reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(_DECODING, _attend)


@contextmanager
def decoding(model: PreTrainedModel, cores: int = 1) -> Iterator[None]:
    """Inside, a model that attends with PyTorch's own attention decodes one token a row, with a mask, in this way.

    Args:
        cores: most that a CPU attends with.
    """
    config = model.config
    alone = cores <= torch.get_num_threads() or model.device.type != "cpu"
    if config._attn_implementation != _PLAIN or (alone and _heads_alike(config)):
        yield
        return
    config._attn_implementation = _DECODING
    token = _cores.set(1 if alone else cores)
    try:
        yield
    finally:
        _cores.reset(token)
        config._attn_implementation = _PLAIN


def _heads_alike(config: Any) -> bool:
    """Whether every query head has keys of its own."""
    return getattr(config, "num_key_value_heads", None) in (None, config.num_attention_heads)
