"""The interface of every rollout engine: hold conversations as token ids, and sample replies."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sampling(NamedTuple):
    """How replies are drawn."""

    temperature: float
    """> 0 divides the logits; 0 takes the most likely token."""
    max_tokens: int
    """Largest number of tokens of a reply."""
    stop: frozenset[int]
    """Ids that end a reply. The reply includes the one that ended it."""


class Sampled(NamedTuple):
    """A sampled reply."""

    ids: list[int]
    """Exact token ids, including the stop token if one was sampled."""
    logprobs: list[float]
    """Log-probability of each id under the distribution that it was drawn from (after temperature)."""


class Engine(Protocol):
    """Samples replies for conversations that grow by appending. All policies that share a model can share an engine.

    A conversation is a number. It holds the tokens that were given and those that were sampled, except the last token
    of a reply. That one begins the next chunk, because the caller decides whether the reply stays in the context.
    """

    def open(self) -> int:
        """Begin a conversation without tokens."""

    def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Awaitable[Sampled]:
        """Append a chunk to a conversation and sample a reply.

        Args:
            chunk: at least one token id.
            seed: decides the draws, together with the conversation. Other conversations have no influence.

        Raises:
            CallFailed: there is no reply. The conversation is unchanged, and other conversations may succeed.
            RlverError: the engine cannot be used at all.
        """

    def rewind(self, conversation: int, length: int) -> None:
        """Forget all but the first `length` tokens of a conversation."""

    def end(self, conversation: int) -> None:
        """Forget a conversation. Its number becomes invalid."""

    async def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from these weights from now on. Call it after every update, while no conversation is open.

        Raises:
            RlverError: the engine could not load them.
        """

    async def close(self) -> None:
        """Close connections. The engine can be used again."""
