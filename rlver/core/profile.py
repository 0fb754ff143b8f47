"""Profiles: who the simulated user is, what happened to them, and what they want without saying it.

A sentient agent is S = <persona, background, goal, hidden intention> (SAGE, arXiv 2505.02847, section 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects, write_objects

Language = Literal["en", "zh"]


class Intention(StrEnum):
    """The eight hidden intentions of an emotional-support talk. The user never names theirs."""

    ABSOLVE = "absolve"
    REFLECT = "reflect"
    WEIGH = "weigh"
    EMPATHISE = "empathise"
    LISTEN = "listen"
    MOTIVES = "motives"
    ADVISE = "advise"
    PRAISE = "praise"

    @property
    def meaning(self) -> str:
        """What the user wants, in one line."""
        return _MEANINGS[self]


_MEANINGS = {
    Intention.ABSOLVE: "agree that I am not at fault",
    Intention.REFLECT: "guide me to self-reflection and growth",
    Intention.WEIGH: "analyse the matter critically, from both sides",
    Intention.EMPATHISE: "empathise deeply with what I feel, not just comfort me",
    Intention.LISTEN: "listen attentively while I vent",
    Intention.MOTIVES: "analyse why the other people acted so",
    Intention.ADVISE: "give me advice that really helps with the difficulty",
    Intention.PRAISE: "praise my specific actions sincerely",
}


class ChatIntention(StrEnum):
    """The hidden intentions of a chit chat, where nobody is in trouble. Only LLM-backed agents know them."""

    INTEREST = "interest"
    WAIT = "wait"

    @property
    def meaning(self) -> str:
        """What the user wants, in one line."""
        return {"interest": "chat about what I am keen on", "wait": "wait for what you bring up"}[self]


class Character(StrEnum):
    """How the user behaves in a talk (the character type of the official profiles)."""

    NEGATIVE = "negative"
    PASSIVE = "passive"
    AVOIDANT = "avoidant"


class Frozen(BaseModel):
    """A value object: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Persona(Frozen):
    """Who speaks."""

    name: str
    age: int | None = None
    gender: Literal["f", "m", ""] = ""
    occupation: str = ""
    hobbies: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    character: Character = Character.PASSIVE
    style: Literal["plain", "terse", "chatty", "ironic", "formal", "emotional"] = "plain"
    text: str = ""
    """The persona in prose, as an LLM-backed agent reads it."""


class Fact(Frozen):
    """One thing that the user can tell. Told one at a time, each at most once."""

    say: str
    """A first-person sentence."""
    handle: str = ""
    """The concrete noun phrase of the sentence by which a reply can take it up; empty if there is none."""
    kind: Literal["event", "action", "other", "feeling", "tried", "stake"] = "event"


class Story(Frozen):
    """What happened."""

    id: str
    """Splits into training, validation and benchmark sets are made by this id, never by profile."""
    topic: str = ""
    title: str = ""
    text: str = ""
    """The background in prose: cause, timeline with thoughts, conflict, what was tried, present state."""
    facts: tuple[Fact, ...] = Field(min_length=1)


class Profile(Frozen):
    """One simulated user: persona x story x hidden intention."""

    version: Literal[1] = 1
    id: str
    language: Language
    persona: Persona
    story: Story
    intention: Intention | ChatIntention
    opening: str = ""
    """The first thing that the user says; empty lets the agent find one."""

    @property
    def need(self) -> Intention:
        """The hidden intention of an emotional-support talk. Raises RlverError for a chit chat."""
        if isinstance(self.intention, ChatIntention):
            raise RlverError(
                f"{self.id}: this is a chit-chat profile, and the embedded user and its measures know emotional "
                "support only; take a language model as user (--user openai:MODEL@BASE_URL)."
            )
        return self.intention


def write_profiles(path: Path, profiles: Iterable[Profile]) -> int:
    """Write profiles as JSON lines and return how many."""
    return write_objects(path, profiles)


def read_profiles(path: Path) -> list[Profile]:
    """Read profiles from JSON lines, in our format or the official one (line by line, told apart by their fields).

    Raises:
        RlverError: the file is missing or empty, or a line is broken; the message names file and line.
    """
    profiles: dict[str, Profile] = {}
    for where, record in read_objects(path):
        profile = _parse(record, where)
        if profile.id in profiles:
            raise RlverError(f"{where}: the id {profile.id!r} stands in an earlier line already; ids must be unique.")
        profiles[profile.id] = profile
    if not profiles:
        raise RlverError(f"{path}: no profiles in this file.")
    return list(profiles.values())


def _parse(record: dict[str, Any], where: str) -> Profile:
    from rlver.formats.sage_profiles import is_official, parse_official  # official.py builds on this module

    if is_official(record):
        return parse_official(record, where)
    try:
        return Profile.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "profile"
        raise RlverError(f"{where}: {field}: {first['msg']}.") from None
