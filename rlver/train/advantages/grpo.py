"""GRPO: how much better than the other rollouts of the same profile."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

_EPSILON = 1e-6


def grpo_terminal(rewards: Sequence[float], group: int) -> list[float]:
    """One advantage per dialogue: (reward - mean of its group) / standard deviation of its group.

    Args:
        rewards: final rewards, B of them; each `group` in a row are rollouts of one profile.

    A group whose rewards are all alike teaches nothing: its advantages are zero. (DeepSeekMath, arXiv 2402.03300,
    equation 3's outcome supervision.)
    """
    advantages = []
    for start in range(0, len(rewards), group):
        part = rewards[start : start + group]
        mean, deviation = fmean(part), pstdev(part)
        advantages += [(r - mean) / (deviation + _EPSILON) if deviation > _EPSILON else 0.0 for r in part]
    return advantages


def grpo_turns(returns: Sequence[Sequence[float]], group: int) -> list[list[float]]:
    """One advantage per turn: its return less the mean of the group at the same turn, over the batch's deviation.

    Args:
        returns: discounted returns of each turn of B dialogues, which may have different numbers of turns.

    Where a dialogue is the only one of its group that got so far, the mean over the whole batch at that turn stands
    in. (arXiv 2603.06194: normalised per turn, then per batch.)
    """
    centred: list[list[float]] = []
    for i, mine in enumerate(returns):
        start = i - i % group
        row = []
        for turn, value in enumerate(mine):
            peers = [other[turn] for other in returns[start : start + group] if len(other) > turn]
            if len(peers) < 2:
                peers = [other[turn] for other in returns if len(other) > turn]
            row.append(value - fmean(peers))
        centred.append(row)
    deviation = pstdev([value for row in centred for value in row])
    return [[value / (deviation + _EPSILON) for value in row] for row in centred]
