"""Makes an engine from a spec."""

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
"""A server batches and queues requests itself. The timeout leaves it time to load weights."""


def load_engine(
    spec: str,
    model: PreTrainedModel,
    *,
    weights: Path | None = None,
    limits: Limits = SERVER_LIMITS,
) -> Engine:
    """The engine that `spec` names: `local`, or a server as `STYLE@URL` or `STYLE:MODEL@URL`.

    Args:
        spec: for example `vllm@http://127.0.0.1:8000/v1`. STYLE is vllm, vllm-lora or sglang. MODEL names one of
            several models that the server serves.
        model: the model that `local` samples from.
        weights: folder from which the server reads updated weights.

    Raises:
        RlverError: unknown style, or no usable address.
    """
    if spec == LOCAL:
        from rlver.inference.engines.built_in import BuiltInEngine  # imports torch

        return BuiltInEngine(model)
    server, _, url = spec.partition("@")
    style, _, served_model = server.partition(":")
    if style not in STYLES or not url:
        raise RlverError(
            f"engine {spec}: use {LOCAL}, or a server as STYLE@URL with STYLE {', '.join(STYLES)}; for example "
            "vllm@http://127.0.0.1:8000/v1."
        )
    llm = LLM(parse_endpoint(f"openai:{served_model or style}@{url}"), limits)
    return ServerEngine(llm, style, served_model, weights)
