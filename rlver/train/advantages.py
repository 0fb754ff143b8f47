"""From the rewards of turns to the advantage of every token: the formulas of all algorithms.

The critic-free algorithms (`grpo`, `rloo`, `dr-grpo`) give each turn one advantage by comparing the rollouts of a
profile; `estimate_advantages` copies it to the tokens of the turn. `ppo` and `reinforce++` work on tokens. Shapes: B
dialogues, T sampled tokens of one dialogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

import torch
from torch import Tensor

from rlver.train.config import AlgorithmSettings
from rlver.train.credit import discount, returns

Table = Sequence[Sequence[float]]
"""One row per dialogue and one value per turn, so that rows can differ in length; if the dialogue as a whole has one
value, its row has one entry. Each `group` consecutive rows are the rollouts of one profile."""

EPSILON = 1e-6
"""Added to a standard deviation before it divides."""


# Comparison of the rollouts of a profile


def grpo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """(value - mean of its peers) / standard deviation of its peers (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    With `by_turn`, the standard deviation is that of the whole batch (arXiv 2603.06194: centred per turn, scaled per
    batch), because the few values of one turn give no reliable one. If all peers are equal, the advantage is zero.
    """
    if by_turn:
        return divide_by_std(dr_grpo(table, group, by_turn))
    advantages = []
    for i, row in enumerate(table):
        values = peers(table, group, by_turn, i, 0)
        mean, std = fmean(values), pstdev(values)
        advantages.append([(value - mean) / (std + EPSILON) if std > EPSILON else 0.0 for value in row])
    return advantages


def dr_grpo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """value - mean of its peers (Dr. GRPO, arXiv 2503.20783, section 3.1).

    Without GRPO's division by the standard deviation, easy and hard profiles do not count for more than others. The
    paper's loss is `weighting=constant`.
    """
    return [
        [value - fmean(peers(table, group, by_turn, i, turn)) for turn, value in enumerate(row)]
        for i, row in enumerate(table)
    ]


def rloo(table: Table, group: int, by_turn: bool) -> list[list[float]]:
    """value - mean of its peers without its own dialogue: an unbiased baseline (arXiv 2402.14740, section 3.3).

    The advantage of a turn that no other dialogue reached is zero.
    """
    advantages = []
    for i, row in enumerate(table):
        advantages_of_row = []
        for turn, value in enumerate(row):
            others = peers(table, group, by_turn, i, turn)
            for own in [value] if by_turn else row:
                others.remove(own)  # removes some equal value, which leaves the same mean
            advantages_of_row.append(value - fmean(others) if others else 0.0)
        advantages.append(advantages_of_row)
    return advantages


GROUP_ESTIMATORS: dict[str, Callable[[Table, int, bool], list[list[float]]]] = {
    "grpo": grpo,
    "rloo": rloo,
    "dr-grpo": dr_grpo,
}
"""The algorithms that give each turn one advantage by comparing the rollouts of one profile."""


def peers(table: Table, group: int, by_turn: bool, row: int, turn: int) -> list[float]:
    """The values with which `table[row][turn]` is compared, its own included.

    Args:
        by_turn: compare with the same turn of the group's dialogues only. If no other dialogue of the group reached
            this turn, the same turn of the whole batch is used instead.
    """
    start = row - row % group
    rollouts = table[start : start + group]
    if not by_turn:
        return [value for rollout in rollouts for value in rollout]
    values = [rollout[turn] for rollout in rollouts if len(rollout) > turn]
    return values if len(values) > 1 else [rollout[turn] for rollout in table if len(rollout) > turn]


def divide_by_std(table: Table) -> list[list[float]]:
    """All values divided by their standard deviation over the batch."""
    std = pstdev([value for row in table for value in row])
    return [[value / (std + EPSILON) for value in row] for row in table]


# Estimates token by token


def gae(rewards: Tensor, values: Tensor, gammas: Tensor, lams: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens of a dialogue (arXiv 1506.02438, equation 16).

    Args:
        rewards: (T,) reward after each token.
        values: (T,) the critic's value before each token; zeros if there is no critic, which gives plain returns.
        gammas: (T,) discount from each token to the next; 1 inside a turn. The last entry is not used.
        lams: (T,) lambda from each token to the next; 1 inside a turn.

    Returns:
        Advantages (T,) and returns (T,). The returns are the targets of the critic.
    """
    advantages = torch.zeros_like(values)
    reward, value, gamma, lam = (column.numpy() for column in (rewards, values, gammas, lams))
    out = advantages.numpy()  # shares memory; a loop over NumPy scalars is twenty times as fast as one over tensors
    next_advantage = next_value = value.dtype.type(0)
    for t in range(len(value) - 1, -1, -1):
        delta = reward[t] + gamma[t] * next_value - value[t]
        out[t] = next_advantage = delta + gamma[t] * lam[t] * next_advantage
        next_value = value[t]
    return advantages, advantages + values


def reinforce_plus_plus(returns: Sequence[Tensor], baselines: Sequence[Tensor]) -> list[Tensor]:
    """REINFORCE++: returns minus a baseline, whitened over all tokens of the batch (arXiv 2501.03262, section 3).

    Args:
        returns: (T,) for each dialogue.
        baselines: (T,) for each dialogue: zeros or, with several rollouts of a profile, the mean return of the peers
            ("REINFORCE++-baseline", section 3.3).
    """
    sizes = [len(row) for row in returns]
    return list(whiten(torch.cat(list(returns)) - torch.cat(list(baselines))).split(sizes))


def whiten(values: Tensor) -> Tensor:
    """The values, shifted and scaled to mean 0 and standard deviation 1."""
    return (values - values.mean()) / (values.std(correction=0) + EPSILON)


# From turns to tokens


def estimate_advantages(
    settings: AlgorithmSettings,
    turns: Sequence[Tensor],
    rewards: Sequence[Sequence[float]],
    values: Sequence[Tensor],
    penalties: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Advantages (T,) and the critic's targets (T,) of B dialogues, by the algorithm that the settings name.

    Args:
        turns: (T,) turn of each sampled token.
        rewards: the reward of each turn.
        values: (T,) the critic's values; zeros if there is no critic.
        penalties: (T,) subtracted from the reward of each token, if the divergence is part of the reward.
    """
    gamma, by_turn = discount(settings.credit, settings.gamma), settings.credit == "turn"
    if settings.algo in GROUP_ESTIMATORS:
        table = _values_to_compare(settings, gamma, _subtract_penalties(rewards, turns, penalties))
        by_dialogue = GROUP_ESTIMATORS[settings.algo](table, settings.group, by_turn)
        return [expand_to_tokens(row, at) for row, at in zip(by_dialogue, turns, strict=True)], list(values)

    lam = settings.lam if settings.algo == "ppo" else 1.0
    pairs = []
    for i, (at, row, value) in enumerate(zip(turns, rewards, values, strict=True)):
        token_rewards, gammas, lams = _token_rewards(at, row, gamma, lam)
        if penalties is not None:
            token_rewards = token_rewards - penalties[i]
        pairs.append(gae(token_rewards, value, gammas, lams))
    advantages, targets = ([pair[k] for pair in pairs] for k in (0, 1))
    if settings.algo == "ppo":
        sizes = [len(advantage) for advantage in advantages]
        return list(whiten(torch.cat(advantages)).split(sizes)), targets
    if settings.rollouts == 1:
        baselines = [torch.zeros(len(at)) for at in turns]
    else:
        table = _values_to_compare(settings, gamma, _subtract_penalties(rewards, turns, penalties))
        centred = dr_grpo(table, settings.group, by_turn)
        means = [[v - c for v, c in zip(*rows, strict=True)] for rows in zip(table, centred, strict=True)]
        baselines = [expand_to_tokens(row, at) for row, at in zip(means, turns, strict=True)]
    return reinforce_plus_plus(targets, baselines), list(values)


def expand_to_tokens(row: Sequence[float], turns: Tensor) -> Tensor:
    """(T,) for each token, the value of its turn; a row with one entry gives all tokens the same value."""
    return torch.tensor(row)[turns] if len(row) > 1 else torch.full((len(turns),), row[0])


def _values_to_compare(settings: AlgorithmSettings, gamma: float, rewards: Sequence[Sequence[float]]) -> Table:
    """One value per dialogue with terminal credit, otherwise one per turn."""
    if settings.credit == "terminal":
        return [[sum(row)] for row in rewards]
    return [returns(row, gamma) for row in rewards]


def _subtract_penalties(
    rewards: Sequence[Sequence[float]], turns: Sequence[Tensor], penalties: Sequence[Tensor] | None
) -> Sequence[Sequence[float]]:
    """The rewards of turns minus the penalties of their tokens."""
    if penalties is None:
        return rewards
    return [
        (torch.tensor(row, dtype=penalty.dtype).index_add(0, at, -penalty)).tolist()
        for row, at, penalty in zip(rewards, turns, penalties, strict=True)
    ]


def _token_rewards(turns: Tensor, rewards: Sequence[float], gamma: float, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) rewards, discounts and lambdas of tokens: those of a turn stand at its last token, others are 0, 1 and 1."""
    last = torch.ones(len(turns), dtype=torch.bool)
    last[:-1] = turns[1:] != turns[:-1]
    ones = torch.ones(len(turns))
    return (
        torch.where(last, torch.tensor(rewards)[turns], 0.0),
        torch.where(last, gamma, ones),
        torch.where(last, lam, ones),
    )
