"""One client for every model behind an OpenAI-compatible endpoint: deadline, retry, limit, cache, cost."""

from rlver.llm.client import LLM, Completion, Limits
from rlver.llm.endpoint import Endpoint, parse_endpoint
from rlver.llm.structured import ask

__all__ = ["LLM", "Completion", "Endpoint", "Limits", "ask", "parse_endpoint"]
