"""Attention of a decoding step where several query heads share keys and values (grouped-query attention).

With a mask, `transformers` repeats keys and values for each of the heads that share them: with seven to a head, as in
Qwen2.5-7B, a step moves the whole cache about ten times instead of once. To attend with one query of seven heads is to
attend with seven queries of one head, which needs no copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

_PLAIN, _FOLDED = "sdpa", "sdpa_folded"


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
    out = scaled_dot_product_attention(queries, key, value, mask, dropout, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(_FOLDED, _attend)


@contextmanager
def folded(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model that attends with PyTorch's own attention decodes one token a row, with a mask, in this way."""
    config = model.config
    if config._attn_implementation != _PLAIN or _heads_alike(config):
        yield
        return
    config._attn_implementation = _FOLDED
    try:
        yield
    finally:
        config._attn_implementation = _PLAIN


def _heads_alike(config: Any) -> bool:
    """Whether every query head has keys of its own."""
    return getattr(config, "num_key_value_heads", None) in (None, config.num_attention_heads)
