"""What differs between architectures when code outside the model drives its decoder: masks, positions and logits."""

from __future__ import annotations

from torch import Tensor, finfo, nn, tanh, where
from transformers import PreTrainedConfig, PreTrainedModel

from rlver.core.errors import RlverError

SLIDING = "sliding_attention"
LAYERS = {"full_attention", SLIDING}
"""Kinds of layers that `attention_mask` supports."""


def make_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (..., vocabulary) of last hidden states (..., hidden), as the model's own forward pass computes them."""
    config = model.config
    logits: Tensor = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = tanh(logits / cap) * cap
    return logits


def attention_mask(
    model: PreTrainedModel, visible: Tensor, queries: Tensor, keys: Tensor
) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` argument of a decoder, for all kinds of its layers.

    Args:
        visible: (A, n, m) whether a query may see a key in a layer with full attention.
        queries: (A, n) positions of the queries.
        keys: (A, m) or (m,) positions of the keys. Layers with a sliding window see only keys inside the window.
    """
    window = getattr(model.config, "sliding_window", None)
    layers = getattr(model.config, "layer_types", None)
    if not window or (layers and SLIDING not in layers):
        return _mask_argument(model, visible)
    in_window = visible & (queries[:, :, None] - keys[..., None, :] < window)
    if not layers:
        return _mask_argument(model, in_window)
    return {"full_attention": _mask_argument(model, visible), SLIDING: _mask_argument(model, in_window)}


def position_limit(config: PreTrainedConfig) -> int | None:
    """Longest context in tokens before rotary embeddings are rescaled; None if they never are.

    Rescaling changes the embeddings of all positions, so keys that are already cached would be stale.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def learned_positions(model: PreTrainedModel) -> int | None:
    """Number of positions with learned embeddings; None if the model has no learned position embeddings."""
    inputs = model.get_input_embeddings()
    learned = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Embedding) and module is not inputs and ("position" in name or name.endswith("wpe"))
    ]
    return min(learned, default=None)


def check_length(model: PreTrainedModel, tokens: int, positions: int | None) -> None:
    """Check that a dialogue fits into a model.

    Args:
        tokens: length of the dialogue.
        positions: the `learned_positions` of the model.

    Raises:
        RlverError: the dialogue is longer than the learned positions.
    """
    if positions is not None and tokens > positions:
        raise RlverError(
            f"{model.name_or_path or model.config.model_type}: a dialogue of {tokens} tokens is longer than the "
            f"{positions} positions that the model has learned; use shorter replies or fewer turns."
        )


def _mask_argument(model: PreTrainedModel, visible: Tensor) -> Tensor:
    """The mask (A, 1, n, m): booleans for SDPA on a GPU, otherwise numbers to add to the attention scores.

    On a CPU, SDPA would convert booleans to numbers again in every layer.
    """
    mask = visible[:, None]
    if model.config._attn_implementation != "eager" and model.device.type != "cpu":
        return mask
    return where(mask, 0.0, finfo(model.dtype).min).to(model.dtype)
