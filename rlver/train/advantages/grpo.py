"""GRPO: how much better than the mean rollout of the same profile, in units of their spread."""

from __future__ import annotations

from statistics import fmean, pstdev

from rlver.train.advantages.dr_grpo import dr_grpo
from rlver.train.advantages.peers import EPSILON, Table, peers, scaled


def grpo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """(value - mean of its peers) / their standard deviation (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    With `by_turn` the spread is that of the whole batch (arXiv 2603.06194: normalised per turn, then per batch), for
    the few values of one turn have none worth dividing by. Peers that are all alike teach nothing: zero.
    """
    if by_turn:
        return scaled(dr_grpo(table, group, by_turn))
    advantages = []
    for i, row in enumerate(table):
        others = peers(table, group, by_turn, i, 0)
        mean, deviation = fmean(others), pstdev(others)
        advantages.append([(value - mean) / (deviation + EPSILON) if deviation > EPSILON else 0.0 for value in row])
    return advantages
