"""Transcripts: finished dialogues with everything that is needed to trust and repeat them, one JSON line each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlver.core.dialogue import Dialogue, StopReason, Turn
from rlver.core.emotion import FAILURE_BELOW, SUCCESS_AT
from rlver.core.errors import RlverError, first_problem
from rlver.core.jsonl import read_objects, write_objects
from rlver.core.profile import Character, ChatIntention, Intention, Language


class Transcript(BaseModel):
    """A finished dialogue and its origin."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    profile: str
    """Id of the profile."""
    story: str
    intention: Intention | ChatIntention
    character: Character
    language: Language
    policy: str
    """The policy's spec, as given on the command line."""
    user: str
    """The user's identity: kind, user type, phrasing, and a hash of all data that decides its words and judgements."""
    preset: str
    prompt: str
    """Hash of the policy's system prompt."""
    seed: int
    think: bool
    opening: str
    turns: list[Turn]
    stop: StopReason
    score: float
    """Final score in points; 0 if the format was broken. It has no meaning if `stop.scored` is false."""
    error: str = ""
    """What failed; empty if nothing did."""

    @property
    def success(self) -> bool:
        """Whether the final score is 100."""
        return self.score >= SUCCESS_AT

    @property
    def failure(self) -> bool:
        """Whether the final score is below 10."""
        return self.score < FAILURE_BELOW


def record(dialogue: Dialogue, *, policy: str, user: str, prompt: str, seed: int) -> Transcript:
    """The transcript of a finished dialogue."""
    if dialogue.stop is None:
        raise ValueError("the dialogue has not ended")
    profile = dialogue.profile
    return Transcript(
        profile=profile.id,
        story=profile.story.id,
        intention=profile.intention,
        character=profile.persona.character,
        language=profile.language,
        policy=policy,
        user=user,
        preset=dialogue.preset.name,
        prompt=prompt,
        seed=seed,
        think=dialogue.think,
        opening=dialogue.opening,
        # Token ids serve training alone, and would fill the memory of a long benchmark.
        turns=[turn.model_copy(update={"tokens": None}) if turn.tokens else turn for turn in dialogue.turns],
        stop=dialogue.stop,
        score=100.0 * dialogue.reward,
        error=dialogue.error,
    )


def write_transcripts(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write transcripts as JSON lines and return how many."""
    return write_objects(path, transcripts)


def read_transcripts(path: Path) -> list[Transcript]:
    """Read transcripts from a file of transcripts or from the log of a benchmark, whose other lines are skipped.

    Raises:
        RlverError: a line is broken or not a transcript; the message names file and line.
    """
    transcripts = []
    for where, record in read_objects(path):
        if record.get("kind") in ("run", "end"):
            continue
        try:
            transcripts.append(Transcript.model_validate(record.get("transcript", record)))
        except ValidationError as error:
            raise RlverError(f"{where}: not a transcript of version 1 ({first_problem(error)}).") from None
    return transcripts
