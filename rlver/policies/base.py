"""What every policy can do: answer the simulated users of a batch of dialogues."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from rlver.core.dialogue import Dialogue
from rlver.core.errors import CallFailed

Replies = Sequence[str | CallFailed]
"""One raw reply per dialogue, or why there is none."""


class Policy(Protocol):
    """Someone who answers. `start` once per batch of dialogues, then `reply` for those that still run.

    Dialogues are named by their index in the batch, from first to last, so that a dialogue that ends early
    never shifts the others. The driver leads each for itself and asks for one reply at a time, while others may be
    under way. A policy may have two things more: `end(index)` is called when a dialogue is over, and `waits` says
    whether replies come from outside of this process; without it, those of a coroutine do.
    """

    @property
    def spec(self) -> str:
        """The name under which results are kept, e.g. `scripted:generic` or a folder."""

    @property
    def think(self) -> bool:
        """Whether replies come as `<think>...</think>reply`."""

    @property
    def prompt_hash(self) -> str:
        """Hash of the system prompt; empty if there is none."""

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """Take a new batch. `seeds` hold one seed per dialogue for whatever the policy draws at random."""

    def reply(self, active: Sequence[int]) -> Replies | Awaitable[Replies]:
        """Raw replies to the last utterance of the dialogues with these indices, in the same order."""
