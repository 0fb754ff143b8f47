"""The dialogue: one state machine, whoever drives it.

It holds no agent and no policy. A driver (benchmark, rollout, chat) fetches a reply from the policy, hands
it to `reply`, lets the sentient agent react to what the user saw, and hands the reaction to `react`:

    dialogue.begin(agent.open(profile))
    while dialogue.stop is None:
        if dialogue.reply(policy(dialogue.messages())):
            dialogue.react(agent.react(dialogue))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from rlver.core import think as think_format
from rlver.core.emotion import FAILURE_BELOW, SUCCESS_AT, Preset
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
    StopReason.UNREADABLE: "the sentient agent's answers could not be read: counted, and left out of the score",
}

_FAREWELL = re.compile(
    r"(?<!without saying )\b(good-?\s?bye|bye(\s?-?bye)?|(?<!to )see you( later| around| soon| tomorrow)?|farewell)\W*$"
    r"|(再见|拜拜|再会|回头见)[啦了吧哦]?\W*$",
    re.IGNORECASE,
)


def is_farewell(utterance: str) -> bool:
    """Whether what the user said ends with a goodbye, in English or Chinese."""
    return _FAREWELL.search(utterance.strip()) is not None


@dataclass(slots=True, unsafe_hash=True)
class Reason:
    """One cue of a reply and the points that it moved. A dozen are made for every reply, so it is a plain dataclass;
    nobody changes one."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    cue: str
    points: float


class Reaction(BaseModel):
    """How a sentient agent takes a reply: step one (the emotion) and step two (what it says)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: float
    """Signed change of the emotion in points; the preset clamps it."""
    reasons: tuple[Reason, ...] = ()
    """What moved the emotion, largest first; the points add up to `change`."""
    thought: str = ""
    """The inner thought, in words."""
    utterance: str
    """What the user says next."""
    fact: int | None = None
    """Index of the story's fact that the utterance tells."""
    hint: bool = False
    """Whether the utterance lets the hidden intention show."""
    acts: tuple[str, ...] = ()
    """Dialogue acts that the agent saw in the reply."""
    votes: tuple[float, ...] = ()
    """The change of each vote if several judges, or one several times, were asked; `change` is their median."""


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


class Message(BaseModel):
    """A chat message as the policy sees it."""

    model_config = ConfigDict(frozen=True)

    role: str = Field(pattern="^(system|user|assistant)$")
    content: str


class Dialogue:
    """One talk between a policy and a sentient agent, from the opening to its stop."""

    def __init__(self, profile: Profile, preset: Preset, think: bool = False) -> None:
        self.profile = profile
        self.preset = preset
        self.think = think
        self.opening = ""
        self.opening_fact: int | None = None
        self.opening_hint = False
        self.turns: list[Turn] = []
        self.score = preset.start
        self.stop: StopReason | None = None
        self.error = ""
        """What failed, if the dialogue ended because something did."""

    def begin(self, opening: str, fact: int | None = None, hint: bool = False) -> None:
        """Start with the user's first utterance; `fact` and `hint` say what it tells, as in `Reaction`."""
        self.opening, self.opening_fact, self.opening_hint = opening, fact, hint

    def reply(self, raw: str) -> bool:
        """Take the policy's reply. Returns False if it broke the format, which ends the dialogue unjudged."""
        if self.stop is not None:
            raise ValueError(f"the dialogue has ended ({self.stop}); it takes no more replies")
        if self.turns and self.turns[-1].reaction is None:
            raise ValueError("the last reply has not been judged yet")
        said = think_format.split(raw, self.think)
        if said is None:
            self.turns.append(Turn(raw=raw, score=self.score))
            self.stop = StopReason.BAD_FORMAT
            return False
        self.turns.append(Turn(raw=raw, thought=said.thought, reply=said.reply, score=self.score))
        return True

    def react(self, reaction: Reaction) -> None:
        """Take the user's reaction to the last reply, move the emotion and see whether the talk is over."""
        turn = self.turns[-1]
        turn.reaction = reaction
        self.score = turn.score = self.preset.apply(self.score, reaction.change)
        if self.score >= SUCCESS_AT and self.preset.ends_at_success:
            self.stop = StopReason.DELIGHTED
        elif self.score < self.preset.fails_below:
            self.stop = StopReason.FED_UP
        elif is_farewell(reaction.utterance):
            self.stop = StopReason.FAREWELL
        elif len(self.turns) >= self.preset.replies:
            self.stop = StopReason.TURN_LIMIT

    def fail(self, error: str = "", stop: StopReason = StopReason.ERROR) -> None:
        """End the dialogue because a model or an endpoint failed; it is counted and not scored."""
        self.stop, self.error = stop, error

    def messages(self) -> list[Message]:
        """The talk as the policy sees it: the user's words and its own replies without thinking."""
        messages = [Message(role="user", content=self.opening)]
        for turn in self.turns:
            messages.append(Message(role="assistant", content=turn.reply))
            if turn.reaction is not None:
                messages.append(Message(role="user", content=turn.reaction.utterance))
        return messages

    @property
    def told(self) -> set[int]:
        """Indices of the facts that the user has told so far."""
        facts = {self.opening_fact} | {turn.reaction.fact for turn in self.turns if turn.reaction}
        return {fact for fact in facts if fact is not None}

    @property
    def reward(self) -> float:
        """Final emotion / 100, at least 0; zero for a broken format (RLVER, section 3)."""
        return 0.0 if self.stop is StopReason.BAD_FORMAT else max(0.0, self.score) / 100.0

    @property
    def success(self) -> bool:
        """Whether the talk ended with the user delighted."""
        return 100.0 * self.reward >= SUCCESS_AT

    @property
    def failure(self) -> bool:
        """Whether the talk ended with the user fed up."""
        return 100.0 * self.reward < FAILURE_BELOW
