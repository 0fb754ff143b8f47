"""An answer that is told piece by piece, thinking apart from speaking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rlver.core.think import CLOSE, OPEN


class Piece(NamedTuple):
    """A piece of an answer."""

    text: str
    thinking: bool
    """Whether it belongs to what the policy thinks before it speaks."""
    tokens: int
    """Tokens sampled so far."""
    finish: str | None
    """Why the answer ends with this piece: "stop" or "length"."""


class Teller:
    """Turns a growing text into pieces, thinking apart from speaking."""

    def __init__(self, think: bool) -> None:
        self._think, self._told = think, [0, 0]

    def tell(self, text: str, tokens: int, finish: str | None = None) -> Iterator[Piece]:
        """Pieces that have not been told yet; with `finish` the rest."""
        thought, reply = "", text
        if self._think:
            head, closed, tail = text.partition(CLOSE)
            thought, reply = head.replace(OPEN, ""), tail.lstrip()
            if not closed:
                # What may still become a tag is held back.
                thought, reply = (thought if finish else thought[: -len(CLOSE)]), ""
        for part, thinking in ((thought, True), (reply, False)):
            new = part[self._told[thinking] :]
            if new:
                self._told[thinking] = len(part)
                yield Piece(new, thinking, tokens, None)
        if finish:
            yield Piece("", False, tokens, finish)
