"""The two sides of a dialogue: what a policy and a simulated user must be able to do."""

from __future__ import annotations

from typing import Literal, Protocol

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply

UserType = Literal["vanilla", "challenging"]
"""Vanilla users are receptive and may hint at their need. Challenging users never hint and want their need met."""


class Policy(Protocol):
    """Answers the user. Everything that it needs to know of a dialogue is in the dialogue.

    A policy that holds connections may also have `async close()`.
    """

    @property
    def spec(self) -> str:
        """The name under which results are kept, for example `scripted:generic` or a folder."""

    @property
    def think(self) -> bool:
        """Whether replies come as `<think>...</think>reply`."""

    @property
    def prompt_hash(self) -> str:
        """Hash of the system prompt; empty if there is none."""

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """Reply to the user's last utterance.

        Args:
            seed: the same for all turns of a dialogue. Draws depend on it and on the turn.

        Raises:
            CallFailed: the dialogue ends unscored, and the others go on.
        """


class User(Protocol):
    """A simulated user. It keeps no state of its own, so one user serves many dialogues at once.

    A user that holds connections may also have `async close()`.
    """

    @property
    def identity(self) -> str:
        """Names kind, user type and language, with a hash of everything that decides how the user behaves."""

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first utterance of the user that `dialogue.profile` describes.

        Raises:
            CallFailed, Unreadable: the dialogue ends unscored, and the others go on.
        """

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """React to the last reply of the dialogue. The same dialogue and seed give the same reaction.

        Raises:
            CallFailed, Unreadable: the dialogue ends unscored, and the others go on.
        """
