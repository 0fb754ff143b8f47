"""Sessions: dialogues with a simulated user over a stateless protocol.

A client may name its session. A client that cannot is recognised by its history: the session whose messages equal those
of the request goes on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from rlver.core.dialogue import Dialogue, Opening
from rlver.core.emotion import Preset, band
from rlver.core.errors import CallFailed, RlverError
from rlver.core.interfaces import User
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.core.transcript import record

MOST_SESSIONS = 10_000
"""Largest number of sessions. Beyond it, the least recently used one is forgotten."""

Messages = Sequence[tuple[str, str]]
"""The messages of a dialogue as (role, content) pairs, in which the simulated user is the assistant."""


class NotFound(RlverError):
    """The request names something that does not exist."""


class Conflict(RlverError):
    """The request does not fit the state of the dialogue."""


class Session:
    """One dialogue of a client with a simulated user."""

    def __init__(self, dialogue: Dialogue, seed: int) -> None:
        self.id = secrets.token_urlsafe(12)
        self.dialogue = dialogue
        self.seed = seed
        self.lock = asyncio.Lock()

    @property
    def utterance(self) -> str:
        """The user's last utterance."""
        return self.dialogue.messages()[-1].content

    def state(self) -> dict[str, Any]:
        """The field "rlver" of every answer."""
        dialogue = self.dialogue
        reaction = dialogue.turns[-1].reaction if dialogue.turns else None
        return {
            "session": self.id,
            "profile": dialogue.profile.id,
            "seed": self.seed,
            "turn": len(dialogue.turns),
            "emotion": dialogue.emotion,
            "change": reaction.change if reaction else None,
            "band": band(dialogue.emotion),
            "stop": dialogue.stop,
            "stop_meaning": dialogue.stop.meaning if dialogue.stop else None,
            "reward": dialogue.reward if dialogue.stop and dialogue.stop.scored else None,
        }


class Sessions:
    """All sessions with one simulated user.

    Args:
        profiles: those that sessions can have. A session whose request names none gets the next one in turn.
    """

    def __init__(self, user: User, profiles: Sequence[Profile], preset: Preset, seed: int = 0) -> None:
        self.user, self.preset, self.seed = user, preset, seed
        self._profiles = {profile.id: profile for profile in profiles}
        self._order = list(self._profiles)
        self._turn = 0
        """Number of sessions whose request named no profile."""
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._histories: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        """Session and its number of turns, by the hash of the messages so far."""

    async def begin(self, profile: str | None = None, seed: int | None = None) -> Session:
        """Begin a session.

        Args:
            profile: id of its profile; None takes the next one in turn.
            seed: of the user's draws; None derives one.

        Raises:
            NotFound: there is no such profile.
            CallFailed: the user could not open the dialogue.
        """
        if profile is not None and profile not in self._profiles:
            raise NotFound(f"there is no profile {profile!r} here.")
        name = profile or self._order[self._turn % len(self._order)]
        if seed is None:
            seed = derive(self.seed, name, self._turn)
        self._turn += profile is None
        session = Session(Dialogue(self._profiles[name], self.preset), seed)
        session.dialogue.begin(await self.user.open(session.dialogue, derive(seed, "user")))
        self._add(session)
        return session

    def get(self, name: str) -> Session:
        """The session with this id.

        Raises:
            NotFound: there is none.
        """
        if name not in self._sessions:
            raise NotFound(f"there is no session {name[:60]!r}; POST /v1/sessions begins one.")
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def drop(self, name: str) -> None:
        """Forget a session. Raises NotFound if there is none with this id."""
        self.get(name)
        del self._sessions[name]

    def find(self, history: Messages) -> Session | None:
        """The session with these messages; None if there is none.

        If the session has gone on since, a copy that ends with these messages.
        """
        match = self._histories.get(_hash(history))
        if match is None:
            return None
        session, turns = match
        if session.id in self._sessions and len(session.dialogue.turns) == turns:
            return session
        branch = Session(_replay(session.dialogue, turns), session.seed)
        self._add(branch)
        return branch

    def remember(self, history: Messages, session: Session) -> None:
        """Store the messages of a session, including the last answer, so that `find` recognises them."""
        self._histories[_hash(history)] = (session, len(session.dialogue.turns))
        while len(self._histories) > 2 * MOST_SESSIONS:
            self._histories.popitem(last=False)

    async def reply(self, session: Session, text: str) -> None:
        """Pass a reply to the user and store the reaction.

        Raises:
            Conflict: the dialogue has ended.
            CallFailed: the user failed, which ends the dialogue.
        """
        async with session.lock:
            dialogue = session.dialogue
            if dialogue.stop is not None:
                raise Conflict(f"this dialogue has ended ({dialogue.stop}: {dialogue.stop.meaning}).")
            if not dialogue.reply(text):
                return
            try:
                dialogue.react(await self.user.react(dialogue, derive(session.seed, "user")))
            except CallFailed as error:
                dialogue.fail(error)
                raise

    def transcript(self, session: Session) -> dict[str, Any]:
        """State and messages of a session, and its transcript once it has ended."""
        dialogue = session.dialogue
        transcript = None
        if dialogue.stop is not None:
            ended = record(dialogue, policy="client", user=self.user.identity, prompt="", seed=session.seed)
            transcript = ended.model_dump(mode="json")
        messages = [{"role": m.role, "content": m.content} for m in dialogue.messages()]
        return session.state() | {"messages": messages, "transcript": transcript}

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = session
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)


def _replay(dialogue: Dialogue, turns: int) -> Dialogue:
    """A copy of the dialogue as it was after this number of turns."""
    copy = Dialogue(dialogue.profile, dialogue.preset, dialogue.think)
    copy.begin(Opening(dialogue.opening, dialogue.opening_fact, dialogue.opening_hint))
    for turn in dialogue.turns[:turns]:
        if copy.reply(turn.raw) and turn.reaction is not None:
            copy.react(turn.reaction)
    return copy


def _hash(history: Messages) -> str:
    return sha256("\0".join(f"{role}\1{content}" for role, content in history).encode()).hexdigest()
