"""What every sentient agent can do, whether embedded or backed by a language model."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal, NamedTuple, Protocol

from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.profile import Profile

UserType = Literal["vanilla", "challenging"]
"""Vanilla users are receptive and may hint at their need; challenging ones never do and want their need met."""


class Opening(NamedTuple):
    """The user's first utterance."""

    utterance: str
    fact: int | None
    """Index of the fact that it tells."""
    hint: bool
    """Whether it lets the hidden intention show."""


class User(Protocol):
    """A simulated user. It keeps no state of its own: all of it is in the dialogue, so one agent serves many.

    An agent that asks somebody else, a model behind an endpoint, returns what the driver can wait for.
    """

    @property
    def identity(self) -> str:
        """Names kind, type, language and a hash of everything that decides how it judges and speaks."""

    def open(self, profile: Profile, seed: int) -> Opening | Awaitable[Opening]:
        """The first utterance of this user."""

    def react(self, dialogue: Dialogue, seed: int) -> Reaction | Awaitable[Reaction]:
        """React to the last reply of the dialogue. The same dialogue and seed give the same reaction.

        Raises:
            CallFailed, Unreadable: the dialogue ends unscored, and the others go on.
        """
