"""RLOO: how much better than the other rollouts of the same profile, itself left out."""

from __future__ import annotations

from statistics import fmean

from rlver.train.advantages.peers import Table, peers


def rloo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """value - mean of its peers without its own dialogue (arXiv 2402.14740, section 3.3): an unbiased baseline.

    A turn without any such peer has nothing to be compared with: zero.
    """
    advantages = []
    for i, row in enumerate(table):
        mine = []
        for turn, value in enumerate(row):
            others = peers(table, group, by_turn, i, turn)
            for own in [value] if by_turn else row:
                others.remove(own)  # equal values are equal: whichever goes, the mean is the same
            mine.append(value - fmean(others) if others else 0.0)
        advantages.append(mine)
    return advantages
