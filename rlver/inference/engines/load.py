"""From a spec to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlver.core.errors import RlverError
from rlver.inference.engines.base import Engine
from rlver.inference.engines.server import STYLES, ServerEngine
from rlver.llm import LLM, Limits, parse_endpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOCAL = "local"
SERVER_LIMITS = Limits(concurrency=256, timeout=600.0)
"""A server batches by itself and queues what is too much; loading weights takes time."""


def load_engine(
    spec: str,
    model: PreTrainedModel,
    *,
    weights: Path | None = None,
    limits: Limits = SERVER_LIMITS,
) -> Engine:
    """The engine that `spec` names: `local`, or a server as `STYLE@URL` or `STYLE:MODEL@URL`.

    Args:
        spec: for example `vllm@http://127.0.0.1:8000/v1`; STYLE is vllm, vllm-lora or sglang, MODEL a name under which
            the server serves, if it serves several.
        model: what `local` samples from.
        weights: folder that the server reads updates from.

    Raises:
        RlverError: unknown style, or no usable address.
    """
    if spec == LOCAL:
        from rlver.inference.engines.built_in import LocalEngine  # torch

        return LocalEngine(model)
    who, _, url = spec.partition("@")
    style, _, served = who.partition(":")
    if style not in STYLES or not url:
        raise RlverError(
            f"engine {spec}: say {LOCAL}, or a server as STYLE@URL with STYLE {', '.join(STYLES)}; for example "
            "vllm@http://127.0.0.1:8000/v1."
        )
    return ServerEngine(LLM(parse_endpoint(f"openai:{served or style}@{url}"), limits), style, served, weights)
