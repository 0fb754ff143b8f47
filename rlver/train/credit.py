"""Rewards: what a dialogue earned, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rlver.core.dialogue import Dialogue

Credit = Literal["turn", "terminal"]


def turn_rewards(dialogue: Dialogue, credit: Credit) -> list[float]:
    """The reward of each turn; it is paid at the turn's last token.

    `terminal`: the final reward in [0, 1] at the last turn, nothing before (RLVER, section 3).
    `turn`: the change of emotion in units of ten points, a potential that telescopes to the final score
    (arXiv 2603.06194). A broken format costs all that was left.
    """
    count = len(dialogue.turns)
    if credit == "terminal":
        return [0.0] * (count - 1) + [dialogue.reward]
    scores = [dialogue.preset.start, *(turn.score for turn in dialogue.turns)]
    if dialogue.turns[-1].reaction is None:
        scores[-1] = 0.0
    return [(after - before) / 10.0 for before, after in pairwise(scores)]


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Discounted sum of this and all later rewards, for each turn."""
    result = [0.0] * len(rewards)
    following = 0.0
    for turn in range(len(rewards) - 1, -1, -1):
        following = result[turn] = rewards[turn] + gamma * following
    return result
