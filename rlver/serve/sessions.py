"""Conversations with a simulated user over a protocol that remembers nothing: each is one dialogue with one profile.

A client may name its session. One that cannot is known by its history: whoever sends back the conversation as it
was, in whatever session it was held, goes on with it.
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
"""Kept at once; the one that was used least lately is forgotten first."""

Said = Sequence[tuple[str, str]]
"""A conversation as (role, content), the simulated user being the assistant."""


class Conflict(RlverError):
    """The request does not fit the state of the conversation."""


class Session:
    """One conversation."""

    def __init__(self, dialogue: Dialogue, seed: int) -> None:
        self.id = secrets.token_urlsafe(12)
        self.dialogue = dialogue
        self.seed = seed
        self.lock = asyncio.Lock()

    @property
    def words(self) -> str:
        """What the user said last."""
        return self.dialogue.messages()[-1].content

    def state(self) -> dict[str, Any]:
        """The side field of every answer."""
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
    """All conversations with one simulated user."""

    def __init__(self, user: User, profiles: Sequence[Profile], preset: Preset, seed: int = 0) -> None:
        self.user, self.preset, self.seed = user, preset, seed
        self._profiles = {profile.id: profile for profile in profiles}
        self._order = list(self._profiles)
        self._count = 0
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._histories: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        """Session and number of replies by the hash of the conversation so far."""

    async def begin(self, profile: str | None = None, seed: int | None = None) -> Session:
        """A new conversation: with the given profile, else with the next one in turn.

        Raises:
            Conflict: there is no such profile. CallFailed: the user has no first words.
        """
        if profile is not None and profile not in self._profiles:
            raise Conflict(f"there is no profile {profile!r} here.")
        name = profile or self._order[self._count % len(self._order)]
        chosen = derive(self.seed, name, self._count) if seed is None else seed
        self._count += profile is None
        session = Session(Dialogue(self._profiles[name], self.preset), chosen)
        session.dialogue.begin(await self.user.open(session.dialogue, derive(chosen, "user")))
        self._keep(session)
        return session

    def get(self, name: str) -> Session:
        """The session of that id. Raises Conflict if there is none."""
        if name not in self._sessions:
            raise Conflict(f"there is no session {name[:60]!r}; POST /v1/sessions begins one.")
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def drop(self, name: str) -> None:
        """Forget a session."""
        self.get(name)
        del self._sessions[name]

    def find(self, history: Said) -> Session | None:
        """The session whose conversation this is; a copy of it that stands there if it has gone on since."""
        found = self._histories.get(_hash(history))
        if found is None:
            return None
        session, turns = found
        if session.id in self._sessions and len(session.dialogue.turns) == turns:
            return session
        branch = Session(_replay(session.dialogue, turns), session.seed)
        self._keep(branch)
        return branch

    def remember(self, history: Said, session: Session) -> None:
        """Note that this conversation, the last answer included, is that of the session."""
        self._histories[_hash(history)] = (session, len(session.dialogue.turns))
        while len(self._histories) > 2 * MOST_SESSIONS:
            self._histories.popitem(last=False)

    async def reply(self, session: Session, text: str) -> None:
        """Hand a reply to the user and let them react.

        Raises:
            Conflict: the conversation is over. CallFailed: the user failed, and the conversation with it.
        """
        async with session.lock:
            dialogue = session.dialogue
            if dialogue.stop is not None:
                raise Conflict(f"this conversation has ended ({dialogue.stop}: {dialogue.stop.meaning}).")
            if not dialogue.reply(text):
                return
            try:
                dialogue.react(await self.user.react(dialogue, derive(session.seed, "user")))
            except CallFailed as error:
                dialogue.fail(error)
                raise

    def transcript(self, session: Session) -> dict[str, Any]:
        """All that is known of a session; the transcript once it is over."""
        dialogue = session.dialogue
        whole = None
        if dialogue.stop is not None:
            made = record(dialogue, policy="client", user=self.user.identity, prompt="", seed=session.seed)
            whole = made.model_dump(mode="json")
        messages = [{"role": m.role, "content": m.content} for m in dialogue.messages()]
        return session.state() | {"messages": messages, "transcript": whole}

    def _keep(self, session: Session) -> None:
        self._sessions[session.id] = session
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)


def _replay(dialogue: Dialogue, turns: int) -> Dialogue:
    """The dialogue as it stood after so many replies."""
    copy = Dialogue(dialogue.profile, dialogue.preset, dialogue.think)
    copy.begin(Opening(dialogue.opening, dialogue.opening_fact, dialogue.opening_hint))
    for turn in dialogue.turns[:turns]:
        if copy.reply(turn.raw) and turn.reaction is not None:
            copy.react(turn.reaction)
    return copy


def _hash(history: Said) -> str:
    return sha256("\0".join(f"{role}\1{content}" for role, content in history).encode()).hexdigest()
