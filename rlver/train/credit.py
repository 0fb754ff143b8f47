"""Credit assignment: what a dialogue earned, and which of its turns earned it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Literal

from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError

Credit = Literal["terminal", "change", "return", "turn"]
"""`terminal`: every turn is credited with the final reward (RLVER, section 3). The others reward each turn for the
change of emotion that it caused. `change`: nothing else. `return`: the discounted sum of this change and all later
ones. `turn`: the same sum, compared turn by turn and scaled over the batch (arXiv 2603.06194)."""

Reward = Callable[[Dialogue], float | Sequence[float]]
"""A reward of your own: takes a finished dialogue and returns one number, or one per turn."""


def turn_rewards(dialogue: Dialogue, credit: Credit, reward: Reward | None = None) -> list[float]:
    """The reward of each turn, which is paid at the turn's last token.

    With `terminal` credit it is the final reward in [0, 1] at the last turn and 0 before. Otherwise it is the change of
    emotion in units of ten points, so that the rewards add up to the change over the whole dialogue; a reply that
    breaks the format loses all that was left.

    Args:
        reward: replaces these rewards. A single number is paid at the last turn. `credit` still says how rewards are
            discounted from turn to turn.

    Raises:
        RlverError: `reward` returns something other than one finite number, or one per turn.
    """
    if reward is not None:
        return _custom_rewards(dialogue, reward)
    count = len(dialogue.turns)
    if credit == "terminal":
        return [0.0] * (count - 1) + [dialogue.reward]
    emotions = [dialogue.preset.start, *(turn.score for turn in dialogue.turns)]
    if dialogue.turns[-1].reaction is None:
        emotions[-1] = 0.0
    return [(after - before) / 10.0 for before, after in pairwise(emotions)]


def discount(credit: Credit, gamma: float) -> float:
    """The discount from one turn to the next: none for a terminal reward, and no look ahead for a mere change."""
    return {"terminal": 1.0, "change": 0.0}.get(credit, gamma)


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """For each turn, the discounted sum of its reward and all later ones."""
    result = [0.0] * len(rewards)
    following = 0.0
    for turn in range(len(rewards) - 1, -1, -1):
        following = result[turn] = rewards[turn] + gamma * following
    return result


def reward_name(reward: Reward) -> str:
    """The name under which a run records a reward of one's own, such as `mypackage.rewards.brevity`."""
    function = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{function.__module__}.{function.__qualname__}"


def _custom_rewards(dialogue: Dialogue, reward: Reward) -> list[float]:
    result, turns = reward(dialogue), len(dialogue.turns)
    where = f"the reward {reward_name(reward)} returned"
    which = f"for a dialogue of {turns} turns with profile {dialogue.profile.id}"
    try:
        rewards = [float(value) for value in result] if isinstance(result, Sequence) else [float(result)]
    except (TypeError, ValueError):
        raise RlverError(
            f"{where} {result!r} {which}; it must return one number, or a list with one per turn."
        ) from None
    if isinstance(result, Sequence) and len(rewards) != turns:
        raise RlverError(f"{where} a list of {len(rewards)} {which}; it must return one number, or one per turn.")
    if not all(map(isfinite, rewards)):
        raise RlverError(f"{where} {result!r} {which}; rewards must be finite.")
    return rewards if isinstance(result, Sequence) else [0.0] * (turns - 1) + rewards
