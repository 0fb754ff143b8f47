"""What differs between architectures when the decoder is driven by hand: attention masks and the way to logits."""

from __future__ import annotations

import torch
from torch import Tensor, finfo, nn, tanh, where
from transformers import PreTrainedConfig, PreTrainedModel

from rlver.core.errors import RlverError

# On a GPU, cuDNN's attention is planned anew for every shape, and those of dialogues hardly ever come twice.
torch.backends.cuda.enable_cudnn_sdp(False)

SLIDING = "sliding_attention"
LAYERS = {"full_attention", SLIDING}
"""Kinds of layers that `attention_mask` knows."""


def make_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(..., vocabulary) logits of last hidden states (..., hidden), as the model's own forward pass makes them."""
    config = model.config
    logits: Tensor = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = tanh(logits / cap) * cap
    return logits


def attention_mask(model: PreTrainedModel, seen: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
    """What a decoder takes as `attention_mask`, for all kinds of its layers.

    Args:
        seen: (A, n, m) whether a query may see a key where attention reaches all the way back.
        queries: (A, n) positions of the queries.
        keys: (A, m) or (m,) positions of the keys: layers with a window see only what lies less than it behind.
    """
    window = getattr(model.config, "sliding_window", None)
    layers = getattr(model.config, "layer_types", None)
    if not window or (layers and SLIDING not in layers):
        return _as_taken(model, seen)
    near = seen & (queries[:, :, None] - keys[..., None, :] < window)
    if not layers:
        return _as_taken(model, near)
    return {"full_attention": _as_taken(model, seen), SLIDING: _as_taken(model, near)}


def position_limit(config: PreTrainedConfig) -> int | None:
    """Most tokens of a context where rotary embeddings change with its length: the cache would hold stale ones."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions the model has embeddings of its own for; None if it needs none."""
    inputs = model.get_input_embeddings()
    learned = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Embedding) and module is not inputs and ("position" in name or name.endswith("wpe"))
    ]
    return min(learned, default=None)


def check_length(model: PreTrainedModel, tokens: int, positions: int | None) -> None:
    """Raises RlverError where so many tokens are more than the `learned_positions` of the model."""
    if positions is not None and tokens > positions:
        raise RlverError(
            f"{model.name_or_path or model.config.model_type}: a dialogue of {tokens} tokens is longer than the "
            f"{positions} positions that the model has learned; take shorter replies or fewer turns."
        )


def _as_taken(model: PreTrainedModel, seen: Tensor) -> Tensor:
    """(A, 1, n, m): what is added to the scores; on a GPU booleans for SDPA.

    On a CPU, SDPA would make numbers of booleans in every layer again.
    """
    mask = seen[:, None]
    if model.config._attn_implementation != "eager" and model.device.type != "cpu":
        return mask
    return where(mask, 0.0, finfo(model.dtype).min).to(model.dtype)
