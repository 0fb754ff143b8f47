"""The interfaces of the two sides of a dialogue: the policy and the simulated user."""

from __future__ import annotations

from typing import Literal, Protocol

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply

UserType = Literal["vanilla", "challenging"]
"""Vanilla users are receptive and may hint at their hidden intention. Challenging users are guarded, never hint, and
expect their hidden intention to be met."""


class Policy(Protocol):
    """Replies to the user. The dialogue holds everything that a policy needs to know, so one policy can serve many.

    A policy that holds connections may also have a method `async close()`.
    """

    @property
    def spec(self) -> str:
        """The policy's name in results, for example `scripted:generic` or the path of a folder."""

    @property
    def think(self) -> bool:
        """Whether the policy writes `<think>...</think>` before each reply."""

    @property
    def prompt_hash(self) -> str:
        """Hash of the system prompt; empty if the policy has none."""

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """Reply to the user's last utterance.

        Args:
            dialogue: its last message is the user's. The policy does not change it.
            seed: the same for all turns of a dialogue. Random draws depend on it and on the number of the turn.

        Raises:
            CallFailed: a model or an endpoint failed. This dialogue ends without a score; the others continue.
        """


class User(Protocol):
    """A simulated user: it plays the person of each dialogue's profile and decides how the emotion changes.

    It keeps no state between calls, so one user serves many dialogues at once. A user that holds connections may also
    have a method `async close()`.
    """

    @property
    def identity(self) -> str:
        """Kind, user type and language, with a hash of everything that decides how the user behaves."""

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first utterance of the person that `dialogue.profile` describes.

        Args:
            seed: the same for all calls of a dialogue.

        Raises:
            CallFailed, Unreadable: a model or an endpoint failed, or its answer could not be read. This dialogue ends
                without a score; the others continue.
        """

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """React to the last reply of the dialogue: the change of emotion and the next utterance.

        The same dialogue and seed must give the same reaction.

        Args:
            seed: the same for all calls of a dialogue.

        Raises:
            CallFailed, Unreadable: as in `open`.
        """
