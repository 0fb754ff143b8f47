"""What versions of `transformers` call by different names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn
from transformers import Cache


def cache_argument(decoder: nn.Module, keys_and_values: Cache) -> dict[str, Cache]:
    """The KV cache as the keyword argument of a decoder's forward pass: `cache`, up to 5.23 `past_key_values`."""
    return {_cache_name(type(decoder).forward): keys_and_values}


@cache
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def recomputes_layers(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on: layers keep only their input, and the backward pass computes the rest anew.

    The property of the model that tells this has changed its name.
    """
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
