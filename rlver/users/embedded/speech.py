"""How the embedded agent puts its reaction into words: taking up the reply, telling a new fact, hinting or not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from rlver.core.data import read_yaml
from rlver.core.emotion import Band
from rlver.core.profile import Language

Phrasing = Literal["train", "validation", "heldout"]
"""Which of disjoint sets of sentences the user speaks with: to train with, to choose settings by (hints of its own,
the rest as in training), and to measure with, never met before."""

# Cues of the judge that have lines of their own; the others speak through one of these.
_LINES = {
    "fit", "partial", "specific", "misfit", "generic", "repeated", "parroted", "lecture", "too_long", "too_short",
    "garbled", "foreign", "cold", "scattered", "language", "interrogation", "unsafe",
}  # fmt: skip
_SPEAKS_AS = {"warm": "partial", "momentum": "partial", "mood": "partial", "persona": "misfit"}


def line_key(cue: str, change: float) -> str:
    """The key of the lines by which a cue is voiced."""
    if cue in _LINES:
        return cue
    return _SPEAKS_AS.get(cue, "partial") if change > 0 else "misfit"


class Speech:
    """Draws lines that the user has not said yet in this talk."""

    def __init__(self, language: Language, phrasing: Phrasing, rng: random.Random, said: Sequence[str]) -> None:
        self._lines: dict[str, Any] = read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")
        self._phrasing = phrasing
        self._rng = rng
        self._said = "\n".join(said)
        self._joint = "" if language == "zh" else " "

    def line(self, *path: str, **slots: str) -> str:
        """A line at `path`, e.g. ("answers", "fit"), with its slots filled; preferably one not said before."""
        lines = self._lines
        for key in path:
            lines = lines[key]
        return self._draw(lines.get(self._phrasing, lines["train"]), slots)

    def mood(self, band: Band) -> str:
        """A line that shows the band. Whoever stays in spite of an extreme one speaks as in the next to it."""
        return self.line("mood", {Band.S: Band.A, Band.F: Band.C}.get(band, band))

    def thought(self, key: str) -> str:
        """An inner thought about the last reply."""
        return self._rng.choice(self._lines["thoughts"][key])

    def marked(self, line: str, style: str) -> str:
        """The line, half of the time with a small mark of the speaking style before it."""
        marks = self._lines["styles"].get(style)
        if not marks or self._rng.random() < 0.5:
            return line
        if not line.startswith(("I ", "I'")):
            line = line[0].lower() + line[1:]
        return f"{self._rng.choice(marks)}{self._joint}{line}"

    def chance(self, share: float) -> bool:
        """True in that share of the cases."""
        return self._rng.random() < share

    def pick(self, options: Sequence[str]) -> str:
        """One of the options; nothing if there are none."""
        return self._rng.choice(options) if options else ""

    def join(self, *parts: str) -> str:
        """Sentences put together as the language does."""
        return self._joint.join(part for part in parts if part)

    def _draw(self, lines: Sequence[str], slots: dict[str, str]) -> str:
        given = {name for name, value in slots.items() if value}
        said = ""
        for _ in range(len(lines)):
            line = self._rng.choice(lines)
            if _slots(line) <= given:
                said = line.format(**slots)
                if said not in self._said:
                    return said
        # All that was drawn has been said before: better twice than nothing.
        return said or next(line.format(**slots) for line in lines if _slots(line) <= given)


@cache
def _slots(line: str) -> set[str]:
    return {part.split("}")[0] for part in line.split("{")[1:]}
