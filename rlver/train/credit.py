"""Credit: what a dialogue earned, and which of its turns earned it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rlver.core.dialogue import Dialogue

Credit = Literal["terminal", "change", "return", "turn"]
"""`terminal`: the final reward is that of every turn (RLVER, section 3). The others pay each turn the change of emotion
that it caused: `change` nothing more; `return` the discounted sum of this and all later changes; `turn` the same sum,
compared turn by turn and scaled over the batch (arXiv 2603.06194)."""


def turn_rewards(dialogue: Dialogue, credit: Credit) -> list[float]:
    """The reward of each turn; it is paid at the turn's last token.

    With `terminal` credit that is the final reward in [0, 1] at the last turn and nothing before; else the change of
    emotion in units of ten points, a potential that telescopes to the final score. A broken format costs all that was
    left.
    """
    count = len(dialogue.turns)
    if credit == "terminal":
        return [0.0] * (count - 1) + [dialogue.reward]
    scores = [dialogue.preset.start, *(turn.score for turn in dialogue.turns)]
    if dialogue.turns[-1].reaction is None:
        scores[-1] = 0.0
    return [(after - before) / 10.0 for before, after in pairwise(scores)]


def discount(credit: Credit, gamma: float) -> float:
    """The discount from one turn to the next: a terminal reward has none, and a mere change looks no further."""
    return {"terminal": 1.0, "change": 0.0}.get(credit, gamma)


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Discounted sum of this and all later rewards, for each turn."""
    result = [0.0] * len(rewards)
    following = 0.0
    for turn in range(len(rewards) - 1, -1, -1):
        following = result[turn] = rewards[turn] + gamma * following
    return result
