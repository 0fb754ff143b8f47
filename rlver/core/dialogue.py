"""The dialogue: one state machine, whoever drives it.

A dialogue owns the emotion and the stop reason. It calls neither policy nor user. A driver (`rlver.rollout`, the
server, the corpus) asks both sides in turn and hands over what they say:

    dialogue.begin(await user.open(dialogue, seed))
    while dialogue.stop is None:
        if dialogue.reply(await policy.reply(dialogue, seed)):
            dialogue.react(await user.react(dialogue, seed))
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rlver.core import think as think_format
from rlver.core.emotion import FAILURE_BELOW, SUCCESS_AT, Preset
from rlver.core.errors import CallFailed, Unreadable
from rlver.core.profile import Profile


class StopReason(StrEnum):
    """Why a dialogue ended."""

    DELIGHTED = "delighted"
    FED_UP = "fed_up"
    FAREWELL = "farewell"
    TURN_LIMIT = "turn_limit"
    BAD_FORMAT = "bad_format"
    ERROR = "error"
    UNREADABLE = "unreadable"

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]

    @property
    def scored(self) -> bool:
        """Whether a dialogue that ended so has a score. The others are counted, shown and left out."""
        return self not in (StopReason.ERROR, StopReason.UNREADABLE)


_MEANINGS = {
    StopReason.DELIGHTED: "the emotion reached 100: the user thanked and left",
    StopReason.FED_UP: "the emotion fell to the bottom: the user left",
    StopReason.FAREWELL: "the user said goodbye",
    StopReason.TURN_LIMIT: "the last reply of the preset was judged",
    StopReason.BAD_FORMAT: "a reply broke the think-then-say format and the dialogue earns nothing",
    StopReason.ERROR: "a model or an endpoint failed: counted, and left out of the score",
    StopReason.UNREADABLE: "the user model's answers could not be read: counted, and left out of the score",
}

_FAREWELL = re.compile(
    r"(?<!without saying )\b(good-?\s?bye|bye(\s?-?bye)?|(?<!to )see you( later| around| soon| tomorrow)?|farewell)\W*$"
    r"|(再见|拜拜|再会|回头见)[啦了吧哦]?\W*$",
    re.IGNORECASE,
)


def is_farewell(utterance: str) -> bool:
    """Whether an utterance of the user ends with a goodbye, in English or Chinese."""
    return _FAREWELL.search(utterance.strip()) is not None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """How a local model sampled one reply: the exact ids, so that training never tokenises a text again."""

    prompt_ids: list[int]
    """All ids that the model read before the reply."""
    token_ids: list[int]
    """The sampled ids, including the closing token if it was sampled."""
    logprobs: list[float]
    """Log-probability of each sampled id under the distribution that it was drawn from."""
    lead: int = 0
    """Number of ids at the end of `prompt_ids` that only this reply sees. Prompts of later turns leave them out."""

    @property
    def context_ids(self) -> list[int]:
        """The prompt without its lead, which the prompts of all later turns begin with."""
        return self.prompt_ids[: len(self.prompt_ids) - self.lead]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply of a policy. `Reply.parse` makes it from the policy's text."""

    raw: str
    """The text as the policy produced it."""
    text: str
    """What the user sees."""
    thought: str = ""
    """The policy's private thinking."""
    well_formed: bool = True
    """Whether the text keeps the think-then-say format. A reply that breaks it ends the dialogue with no reward."""
    tokens: TokenRecord | None = None
    """Token ids and log-probabilities, if a local model or a token server sampled the reply."""

    @classmethod
    def parse(cls, raw: str, think: bool, tokens: TokenRecord | None = None) -> Reply:
        """Split a policy's text into thought and reply.

        Args:
            think: whether the text must be `<think>...</think>reply`. Otherwise the whole text is the reply.
        """
        parts = think_format.split(raw, think)
        if parts is None:
            return cls(raw, "", well_formed=False, tokens=tokens)
        return cls(raw, parts.reply, parts.thought, tokens=tokens)


class Opening(NamedTuple):
    """The first utterance of a user."""

    utterance: str
    fact: int | None = None
    """Index of the story's fact that the utterance tells."""
    hint: bool = False
    """Whether the utterance lets the hidden intention show."""


@dataclass(slots=True, unsafe_hash=True)
class Reason:
    """One cue of a reply and the points that it added. A plain dataclass, because every reply makes a dozen of them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    cue: str
    points: float


class Reaction(BaseModel):
    """How a user takes a reply: first the change of emotion, then the next utterance (the two steps of SAGE)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: float
    """Signed change of the emotion in points. The preset clamps it."""
    reasons: tuple[Reason, ...] = ()
    """What moved the emotion, largest first. The points add up to `change`."""
    thought: str = ""
    """The inner thought, in words."""
    utterance: str
    """What the user says next."""
    fact: int | None = None
    """Index of the story's fact that the utterance tells."""
    hint: bool = False
    """Whether the utterance lets the hidden intention show."""
    acts: tuple[str, ...] = ()
    """Dialogue acts that the user recognised in the reply."""
    votes: tuple[float, ...] = ()
    """The change of each vote, if there were several. `change` is their median."""


class Turn(BaseModel):
    """One reply of the policy and the user's reaction to it."""

    model_config = ConfigDict(extra="forbid")

    raw: str
    """The policy's text as sampled."""
    thought: str = ""
    """The policy's private thinking."""
    reply: str = ""
    """What the user saw."""
    score: float
    """Emotion after this turn."""
    reaction: Reaction | None = None
    """None if the reply was never judged (broken format)."""
    tokens: TokenRecord | None = Field(default=None, exclude=True, repr=False)
    """See `Reply.tokens`. Transcripts leave it out."""


class Message(BaseModel):
    """A chat message as the policy sees it."""

    model_config = ConfigDict(frozen=True)

    role: str = Field(pattern="^(system|user|assistant)$")
    content: str


class Dialogue:
    """One dialogue between a policy and a simulated user, from the opening to the stop."""

    def __init__(self, profile: Profile, preset: Preset, think: bool = False) -> None:
        self.profile = profile
        self.preset = preset
        self.think = think
        self.opening = ""
        self.opening_fact: int | None = None
        self.opening_hint = False
        self.turns: list[Turn] = []
        self.emotion = preset.start
        self.stop: StopReason | None = None
        self.error = ""
        """What failed, if the dialogue ended because a model or an endpoint failed."""
        self._callbacks: list[Callable[[], None]] = []

    def begin(self, opening: Opening | str) -> None:
        """Start with the user's first utterance."""
        if isinstance(opening, str):
            opening = Opening(opening)
        self.opening, self.opening_fact, self.opening_hint = opening

    def reply(self, reply: Reply | str) -> bool:
        """Take the policy's reply. Returns False if it broke the format, which ends the dialogue unjudged.

        Args:
            reply: a text is parsed as `Reply.parse` does.
        """
        if self.stop is not None:
            raise ValueError(f"the dialogue has ended ({self.stop}); it takes no more replies")
        if self.turns and self.turns[-1].reaction is None:
            raise ValueError("the last reply has not been judged yet")
        if isinstance(reply, str):
            reply = Reply.parse(reply, self.think)
        self.turns.append(
            Turn(raw=reply.raw, thought=reply.thought, reply=reply.text, score=self.emotion, tokens=reply.tokens)
        )
        if not reply.well_formed:
            self._end(StopReason.BAD_FORMAT)
        return reply.well_formed

    def react(self, reaction: Reaction) -> None:
        """Take the user's reaction to the last reply: move the emotion and decide whether the dialogue is over."""
        turn = self.turns[-1]
        turn.reaction = reaction
        self.emotion = turn.score = self.preset.apply(self.emotion, reaction.change)
        if self.emotion >= SUCCESS_AT and self.preset.ends_at_success:
            self._end(StopReason.DELIGHTED)
        elif self.emotion < self.preset.fails_below:
            self._end(StopReason.FED_UP)
        elif is_farewell(reaction.utterance):
            self._end(StopReason.FAREWELL)
        elif len(self.turns) >= self.preset.replies:
            self._end(StopReason.TURN_LIMIT)

    def fail(self, failure: CallFailed | str) -> None:
        """End the dialogue because a model or an endpoint failed. It is counted and not scored."""
        self.error = str(failure)
        self._end(StopReason.UNREADABLE if isinstance(failure, Unreadable) else StopReason.ERROR)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the dialogue ends. A policy frees here what it keeps for the dialogue."""
        self._callbacks.append(callback)

    def messages(self) -> list[Message]:
        """The dialogue as the policy sees it: the user's utterances and its own replies without thinking."""
        messages = [Message(role="user", content=self.opening)]
        for turn in self.turns:
            messages.append(Message(role="assistant", content=turn.reply))
            if turn.reaction is not None:
                messages.append(Message(role="user", content=turn.reaction.utterance))
        return messages

    @property
    def told_facts(self) -> set[int]:
        """Indices of the facts that the user has told so far."""
        facts = {self.opening_fact} | {turn.reaction.fact for turn in self.turns if turn.reaction}
        return {fact for fact in facts if fact is not None}

    @property
    def reward(self) -> float:
        """Final emotion / 100, at least 0; zero for a broken format (RLVER, section 3)."""
        return 0.0 if self.stop is StopReason.BAD_FORMAT else max(0.0, self.emotion) / 100.0

    @property
    def success(self) -> bool:
        """Whether the dialogue ended with the user delighted."""
        return 100.0 * self.reward >= SUCCESS_AT

    @property
    def failure(self) -> bool:
        """Whether the dialogue ended with the user fed up."""
        return 100.0 * self.reward < FAILURE_BELOW

    def _end(self, stop: StopReason) -> None:
        self.stop = stop
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
