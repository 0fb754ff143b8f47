"""Dr. GRPO: GRPO without the division by the spread, which makes easy and hard profiles count for more."""

from __future__ import annotations

from statistics import fmean

from rlver.train.advantages.peers import Table, peers


def dr_grpo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """value - mean of its peers (arXiv 2503.20783, section 3.1). The paper's loss is `weighting: constant`."""
    return [
        [value - fmean(peers(table, group, by_turn, i, turn)) for turn, value in enumerate(row)]
        for i, row in enumerate(table)
    ]
