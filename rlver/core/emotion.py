"""The emotion of the simulated user: a number in [0, 100], its bands, and presets for every disputed constant.

Papers and public code contradict each other on where the emotion starts, how far one reply can move it and when a
dialogue ends. A preset fixes all of these under one name, which is printed with every result.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf

from pydantic import BaseModel, ConfigDict

from rlver.core.errors import RlverError

SUCCESS_AT = 100.0
"""A dialogue is a success if the final emotion is at least this (SAGE leaderboard)."""
FAILURE_BELOW = 10.0
"""A dialogue is a failure if the final emotion is below this (SAGE leaderboard)."""


class Band(StrEnum):
    """How the user feels about the dialogue so far (SAGE, section 2)."""

    S = "S"
    A = "A"
    B = "B"
    C = "C"
    F = "F"


def band(emotion: float) -> Band:
    """The band of an emotion: S >= 100, A 70-99, B 40-69, C 10-39, F < 10."""
    if emotion >= SUCCESS_AT:
        return Band.S
    if emotion >= 70:
        return Band.A
    if emotion >= 40:
        return Band.B
    return Band.C if emotion >= FAILURE_BELOW else Band.F


class Preset(BaseModel):
    """Every constant on which the sources disagree. Emotions are in points on the 0-100 scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    start: float
    """Emotion before the first reply."""
    clamp: float
    """Largest change that one reply can cause, up or down."""
    floor: float
    """Lowest possible emotion."""
    ceiling: float = 100.0
    """Highest possible emotion."""
    fails_below: float
    """The user leaves, fed up, once the emotion is below this."""
    ends_at_success: bool
    """Whether the user leaves as soon as the emotion reaches 100."""
    replies: int
    """Number of replies that are judged; the dialogue ends after the last of them."""

    def apply(self, emotion: float, change: float) -> float:
        """The emotion after a reaction of `change` points, clamped by this preset."""
        change = max(-self.clamp, min(self.clamp, change))
        return max(self.floor, min(self.ceiling, emotion + change))


# Some sources end a dialogue at "<= 0". Emotions move in whole points, so "below a tiny positive number" is the same.
_AT_ZERO = 1e-9

PRESETS = {
    preset.name: preset
    for preset in (
        # SAGE's benchmark code; its ten turns hold nine judged replies.
        Preset(name="sage", start=40, clamp=10, floor=0, fails_below=10, ends_at_success=True, replies=9),
        # The public RLVER training code: unclamped changes, no floor, and eight turns counted with an off-by-one error.
        Preset(name="release", start=30, clamp=inf, floor=-inf, fails_below=_AT_ZERO, ends_at_success=False, replies=9),
        # RLVER (arXiv 2507.03112) as written, with the constants of SAGE where it gives none.
        Preset(name="paper", start=40, clamp=10, floor=0, fails_below=_AT_ZERO, ends_at_success=True, replies=8),
    )
}


def get_preset(name: str) -> Preset:
    """The preset with this name. Raises RlverError for an unknown name."""
    if name not in PRESETS:
        raise RlverError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
