"""Which conversation occupies which row of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlver.inference.sampler import Sampler

_NO_ROW = -1


@dataclass(eq=False)
class Conversation:
    """A conversation of the built-in engine. After its end it marks a row that is free."""

    row: int = _NO_ROW
    length: int = 0
    """Number of tokens in the cache."""
    prefix: Sequence[int] = ()
    """Ids at the beginning, kept so that other conversations with the same beginning can copy them."""
    ended: bool = False


class Rows:
    """The rows of a sampler's cache.

    An ended conversation stays in its row until another needs the row, so that its beginning can still be copied.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._rows: list[Conversation] = []

    def lengths(self, count: int) -> list[int]:
        """Number of tokens in each of the first `count` rows."""
        return [conversation.length for conversation in self._rows[:count]]

    def find_filled(self) -> Conversation | None:
        """A conversation with tokens in the cache, preferably one that has not ended; None if there is none."""
        filled = (conversation for conversation in self._rows if conversation.length)
        return min(filled, key=lambda conversation: conversation.ended, default=None)

    def compact(self, active: Sequence[Conversation]) -> None:
        """Move the active conversations to the first rows, swapping occupants. Those already there stay in place."""
        count, rows = len(active), self._rows
        rows += [Conversation(ended=True) for _ in range(count - len(rows))]
        occupied = {conversation.row for conversation in active}
        sources: dict[int, int] = {}  # by target row
        used = 0
        free = (row for row in range(count) if row not in occupied)
        for conversation in active:
            if 0 <= conversation.row < count:
                continue
            target, vacated = next(free), conversation.row
            occupant = rows[target]
            if vacated == _NO_ROW and not occupant.ended:
                vacated = next((row for row in range(count, len(rows)) if rows[row].ended), len(rows))
                rows += [Conversation(ended=True)] * (vacated == len(rows))
            if conversation.row != _NO_ROW:
                sources[target], used = conversation.row, max(used, conversation.length)
                rows[vacated] = Conversation(ended=True)
                # The tokens of an ended occupant are overwritten.
                occupant.length *= not occupant.ended
            if not occupant.ended:
                sources[vacated], used = target, max(used, occupant.length)
                rows[vacated].length = 0
                rows[vacated], occupant.row = occupant, vacated
            rows[target], conversation.row = conversation, target
        self._sampler.cache.reserve(len(rows), used + 1)
        if sources:
            self._sampler.cache.copy_rows(list(sources.values()), list(sources), used)

    def clear(self) -> None:
        """Forget all rows and free the cache."""
        self._rows = []
        self._sampler.clear()
