"""From what turns earned to the advantage of every token, by the algorithm that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlver.train.advantages.dr_grpo import dr_grpo
from rlver.train.advantages.gae import gae, over_tokens
from rlver.train.advantages.grpo import grpo
from rlver.train.advantages.peers import Table
from rlver.train.advantages.reinforce import reinforce_plus_plus
from rlver.train.advantages.rloo import rloo
from rlver.train.advantages.whiten import whiten
from rlver.train.credit import discount, returns
from rlver.train.settings import AlgorithmSettings

COMPARING: dict[str, Callable[[Table, int, bool], list[list[float]]]] = {
    "grpo": grpo,
    "rloo": rloo,
    "dr-grpo": dr_grpo,
}
"""The algorithms that give every turn one advantage, by comparing rollouts of one profile."""


def estimate(
    settings: AlgorithmSettings,
    turns: Sequence[Tensor],
    rewards: Sequence[Sequence[float]],
    values: Sequence[Tensor],
    penalties: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Advantages (T,) and the critic's targets (T,) of B dialogues.

    Args:
        turns: (T,) turn of each sampled token.
        rewards: the reward of each turn.
        values: (T,) the critic's values; zeros without a critic.
        penalties: (T,) what each token pays, where the divergence from the starting policy is part of the reward.
    """
    gamma, by_turn = discount(settings.credit, settings.gamma), settings.credit == "turn"
    if settings.algo in COMPARING:
        table = _table(settings, gamma, _charged(rewards, turns, penalties))
        found = COMPARING[settings.algo](table, settings.group, by_turn)
        return [_spread(row, at) for row, at in zip(found, turns, strict=True)], list(values)

    lam = settings.lam if settings.algo == "ppo" else 1.0
    pairs = []
    for i, (at, row, value) in enumerate(zip(turns, rewards, values, strict=True)):
        paid, gammas, lams = over_tokens(at, row, gamma, lam)
        pairs.append(gae(paid if penalties is None else paid - penalties[i], value, gammas, lams))
    advantages, targets = ([pair[k] for pair in pairs] for k in (0, 1))
    if settings.algo == "ppo":
        sizes = [len(advantage) for advantage in advantages]
        return list(whiten(torch.cat(advantages)).split(sizes)), targets
    if settings.rollouts == 1:
        baselines = [torch.zeros(len(at)) for at in turns]
    else:
        table = _table(settings, gamma, _charged(rewards, turns, penalties))
        centred = dr_grpo(table, settings.group, by_turn)
        means = [[v - c for v, c in zip(*rows, strict=True)] for rows in zip(table, centred, strict=True)]
        baselines = [_spread(row, at) for row, at in zip(means, turns, strict=True)]
    return reinforce_plus_plus(targets, baselines), list(values)


def _table(settings: AlgorithmSettings, gamma: float, rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """What is compared: one value a dialogue with terminal credit, else one a turn."""
    if settings.credit == "terminal":
        return [[sum(row)] for row in rewards]
    return [returns(row, gamma) for row in rewards]


def _charged(
    rewards: Sequence[Sequence[float]], turns: Sequence[Tensor], penalties: Sequence[Tensor] | None
) -> Sequence[Sequence[float]]:
    """The rewards of turns less what their tokens pay."""
    if penalties is None:
        return rewards
    return [
        (torch.tensor(row, dtype=paid.dtype).index_add(0, at, -paid)).tolist()
        for row, at, paid in zip(rewards, turns, penalties, strict=True)
    ]


def _spread(row: Sequence[float], turns: Tensor) -> Tensor:
    """(T,) the value of each token's turn; a single value is everyone's."""
    return torch.tensor(row)[turns] if len(row) > 1 else torch.full((len(turns),), row[0])
