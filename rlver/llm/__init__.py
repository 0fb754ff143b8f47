"""One client for every model behind an OpenAI-compatible endpoint: deadlines, retries, limits, cache and cost."""

from rlver.llm.client import LLM, Completion
from rlver.llm.endpoint import Endpoint, parse_endpoint
from rlver.llm.limits import Limits
from rlver.llm.structured import ask

__all__ = ["LLM", "Completion", "Endpoint", "Limits", "ask", "parse_endpoint"]
