"""What the value of a turn is compared with: the turns of the other rollouts of the same profile."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev

Table = Sequence[Sequence[float]]
"""One row per dialogue, one value per turn; rows may have different lengths. `group` rows in a row are rollouts of
one profile. Where a whole dialogue has one value, its row has one entry."""

EPSILON = 1e-6
"""Added to a standard deviation before it divides."""


def peers(table: Table, group: int, by_turn: bool, row: int, turn: int) -> list[float]:
    """The values that `table[row][turn]` is compared with, its own among them.

    Args:
        by_turn: only the same turn of the group's dialogues. Where a dialogue is the only one of its group that got so
            far, the same turn of the whole batch stands in.
    """
    start = row - row % group
    mine = table[start : start + group]
    if not by_turn:
        return [value for other in mine for value in other]
    found = [other[turn] for other in mine if len(other) > turn]
    return found if len(found) > 1 else [other[turn] for other in table if len(other) > turn]


def scaled(table: Table) -> list[list[float]]:
    """All values over their standard deviation in the batch."""
    deviation = pstdev([value for row in table for value in row])
    return [[value / (deviation + EPSILON) for value in row] for row in table]
