"""The lines that the embedded user speaks, drawn from written ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from rlver.core.data import read_yaml
from rlver.core.emotion import Band
from rlver.core.profile import Language

Phrasing = Literal["train", "validation", "heldout"]
"""The sentences that the user speaks with. `heldout` shares no sentence with `train`, so it measures what a policy has
learned. `validation` is for choosing settings: it has hints of its own, and the other sentences of `train`."""

# Cues of the judge that have lines of their own. Other cues use the lines of one of these.
_LINES = {
    "fit", "partial", "specific", "misfit", "generic", "repeated", "parroted", "lecture", "too_long", "too_short",
    "garbled", "foreign", "cold", "scattered", "language", "interrogation", "unsafe",
}  # fmt: skip
_LINES_OF = {"warm": "partial", "momentum": "partial", "mood": "partial", "persona": "misfit"}


def line_key(cue: str, change: float) -> str:
    """The key of the lines that express a cue.

    Args:
        change: of the emotion, which decides between friendly and unfriendly lines.
    """
    if cue in _LINES:
        return cue
    return _LINES_OF.get(cue, "partial") if change > 0 else "misfit"


class Speech:
    """Draws lines that the user has not said in this dialogue yet."""

    def __init__(self, language: Language, phrasing: Phrasing, rng: random.Random, utterances: Sequence[str]) -> None:
        """Prepare the next utterance.

        Args:
            utterances: those of the user so far.
        """
        self._lines: dict[str, Any] = read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")
        self._phrasing = phrasing
        self._rng = rng
        self._said = "\n".join(utterances)
        self._joint = "" if language == "zh" else " "

    def line(self, *path: str, **slots: str) -> str:
        """A line at `path`, for example ("answers", "fit"), with its slots filled, preferably one not said before."""
        lines = self._lines
        for key in path:
            lines = lines[key]
        return self._draw(lines.get(self._phrasing, lines["train"]), slots)

    def mood(self, band: Band) -> str:
        """A line that shows the band. A user that stays in an extreme band speaks as in the neighbouring one."""
        return self.line("mood", {Band.S: Band.A, Band.F: Band.C}.get(band, band))

    def thought(self, key: str) -> str:
        """An inner thought about the last reply."""
        return self._rng.choice(self._lines["thoughts"][key])

    def marked(self, line: str, style: str) -> str:
        """The line, half of the time with a short phrase of the speaking style before it."""
        marks = self._lines["styles"].get(style)
        if not marks or self._rng.random() < 0.5:
            return line
        if not line.startswith(("I ", "I'")):
            line = line[0].lower() + line[1:]
        return f"{self._rng.choice(marks)}{self._joint}{line}"

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self._rng.random() < share

    def pick(self, options: Sequence[str]) -> str:
        """One of the options; the empty string if there are none."""
        return self._rng.choice(options) if options else ""

    def join(self, *parts: str) -> str:
        """The sentences, joined with a space in English and without one in Chinese."""
        return self._joint.join(part for part in parts if part)

    def _draw(self, lines: Sequence[str], slots: dict[str, str]) -> str:
        filled = {name for name, value in slots.items() if value}
        text = ""
        for _ in range(len(lines)):
            line = self._rng.choice(lines)
            if _slots(line) <= filled:
                text = line.format(**slots)
                if text not in self._said:
                    return text
        # Every drawn line has been said before. Saying one twice is better than saying nothing.
        return text or next(line.format(**slots) for line in lines if _slots(line) <= filled)


@cache
def _slots(line: str) -> set[str]:
    """Names of the slots in a line."""
    return {part.split("}")[0] for part in line.split("{")[1:]}
