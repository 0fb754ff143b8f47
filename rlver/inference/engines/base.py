"""What every rollout engine can do: hold conversations as token ids, and sample replies."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sampling(NamedTuple):
    """How replies are drawn."""

    temperature: float
    """> 0 divides the logits; 0 takes the likeliest token."""
    max_tokens: int
    """Most tokens of a reply."""
    stop: frozenset[int]
    """Ids that end a reply; the one that did is its last."""


class Sampled(NamedTuple):
    """A reply."""

    ids: list[int]
    """Exact token ids, the stop token included if one was sampled."""
    logprobs: list[float]
    """Log probability of each under the distribution that it was drawn from (after temperature)."""


class Engine(Protocol):
    """Samples replies for conversations that grow by appending. One engine serves everybody who shares its model.

    A conversation is a number. It holds the tokens that were given and those that were sampled, except the last token
    of a reply. That one begins the next chunk, because the caller decides whether the reply stays in the context.
    """

    def open(self) -> int:
        """Begin a conversation without tokens."""

    def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Awaitable[Sampled]:
        """Append a chunk of at least one id and sample a reply. The draws depend on the seed, not on other
        conversations.

        Raises:
            CallFailed: there is no reply. The conversation is unchanged, and other conversations may succeed.
            RlverError: the engine cannot be used at all.
        """

    def rewind(self, conversation: int, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def end(self, conversation: int) -> None:
        """Forget a conversation. Its number is not valid any more."""

    async def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from these weights from now on. To be called after every update of the model, between batches.

        Raises:
            RlverError: the engine could not take them.
        """

    async def close(self) -> None:
        """Close connections. The engine can be used again."""
