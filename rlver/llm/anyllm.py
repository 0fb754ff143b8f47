"""Providers without an OpenAI-compatible endpoint, reached through the optional package any-llm-sdk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlver.core.errors import RlverError

_FATAL = (
    "AuthenticationError", "MissingApiKeyError", "ModelNotFoundError", "UnsupportedProviderError",
    "InsufficientFundsError",
)  # fmt: skip
_REFUSALS = ("InvalidRequestError", "UnsupportedParameterError", "ContextLengthExceededError", "ContentFilterError")


class AnyProvider:
    """One provider of any-llm. Keys come from the environment variables that any-llm defines.

    Raises:
        RlverError: any-llm is not installed, does not know the provider, or lacks the provider's key or package.
    """

    def __init__(self, provider: str) -> None:
        try:
            from any_llm import AnyLLM
        except ImportError:
            raise RlverError(
                "any:PROVIDER/MODEL needs the optional package any-llm-sdk: pip install 'rlver[any]'."
            ) from None
        try:
            self._client = AnyLLM.create(provider, unified_exceptions=True)
        except Exception as error:  # any-llm raises many types here; all mean that the provider cannot be used
            raise RlverError(f"any:{provider}/...: {str(error).splitlines()[0]}") from None

    async def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a chat, in the form of the chat completions API."""
        answer = await self._client.acompletion(**request)
        return answer.model_dump()


def is_fatal(error: Exception) -> bool:
    """Whether an exception of any-llm means that the provider cannot be used at all."""
    return type(error).__name__ in _FATAL


def is_refusal(error: Exception) -> bool:
    """Whether an exception of any-llm means that this request will never get an answer."""
    return type(error).__name__ in _REFUSALS
