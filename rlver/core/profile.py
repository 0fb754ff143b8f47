"""Profiles: who the simulated user is, what happened to them, and what they want without saying it.

A profile is <persona, background, goal, hidden intention>, which SAGE (arXiv 2505.02847, section 2) calls a sentient
agent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlver.core.errors import RlverError, first_problem

Language = Literal["en", "zh"]


class Intention(StrEnum):
    """The eight hidden intentions of an emotional-support dialogue. The user never names theirs."""

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
    """The hidden intentions of a chit-chat dialogue, in which nobody is in trouble. Only LLM users support them."""

    INTEREST = "interest"
    WAIT = "wait"

    @property
    def meaning(self) -> str:
        """What the user wants, in one line."""
        return {"interest": "chat about what I am keen on", "wait": "wait for what you bring up"}[self]


class Character(StrEnum):
    """How the user behaves in a dialogue (the character type of the official profiles)."""

    NEGATIVE = "negative"
    PASSIVE = "passive"
    AVOIDANT = "avoidant"


class Frozen(BaseModel):
    """A value object: immutable, and it rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Persona(Frozen):
    """Who the user is."""

    name: str
    age: int | None = None
    gender: Literal["f", "m", ""] = ""
    occupation: str = ""
    hobbies: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    character: Character = Character.PASSIVE
    style: Literal["plain", "terse", "chatty", "ironic", "formal", "emotional"] = "plain"
    text: str = ""
    """The persona in prose, as an LLM user reads it."""


class Fact(Frozen):
    """One thing that the user can tell. The user tells one fact at a time, and each at most once."""

    say: str
    """A first-person sentence."""
    handle: str = ""
    """The concrete noun phrase of the sentence that a reply can refer to; empty if there is none."""
    kind: Literal["event", "action", "other", "feeling", "tried", "stake"] = "event"


class Story(Frozen):
    """What happened to the user."""

    id: str
    """Profiles are split into training, validation and benchmark sets by this id, so that no story is in two sets."""
    topic: str = ""
    title: str = ""
    text: str = ""
    """The background in prose: cause, timeline with thoughts, conflict, failed attempts, present state."""
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
    """The first utterance of the user; if it is empty, the simulated user makes one up."""

    @property
    def need(self) -> Intention:
        """The hidden intention of an emotional-support dialogue. Raises RlverError for a chit-chat profile."""
        if isinstance(self.intention, ChatIntention):
            raise RlverError(
                f"{self.id}: this is a chit-chat profile, but the embedded user and its measures support only "
                "emotional-support profiles; choose a language model as the user (--user openai:MODEL@BASE_URL)."
            )
        return self.intention


def parse_profile(record: dict[str, Any], where: str) -> Profile:
    """Read a profile in our format from a JSON object. Raises RlverError, naming `where`, for a broken field."""
    try:
        return Profile.model_validate(record)
    except ValidationError as error:
        raise RlverError(f"{where}: {first_problem(error, 'profile')}.") from None
