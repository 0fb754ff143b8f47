"""What every rollout engine can do: hold conversations as token ids, and sample replies to them."""

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
    """Samples replies for conversations that grow by appending. One engine serves all that share its model.

    A conversation is a number. It holds the tokens that were given and those that were sampled, except a reply's
    last: that one begins the next chunk, as the caller says whether the reply stays part of the talk.
    """

    @property
    def waits(self) -> bool:
        """Whether replies come from outside of this process, so that waiting for them takes an event loop."""

    def open(self) -> int:
        """Begin a conversation without tokens."""

    def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Awaitable[Sampled]:
        """Append a chunk of at least one id and sample a reply. What the seed draws, no other conversation moves.

        Raises:
            CallFailed: no reply to be had; the conversation is as it was, and others may fare better.
            RlverError: the engine cannot be used at all.
        """

    def rewind(self, conversation: int, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def end(self, conversation: int) -> None:
        """Forget a conversation; nobody may name it again."""

    def clear(self) -> None:
        """Free what is kept of ended conversations."""

    async def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from these weights from now on. To be called after every update of the model, between batches.

        Raises:
            RlverError: the engine has not taken them.
        """

    async def close(self) -> None:
        """Close connections; the engine can be used again."""
