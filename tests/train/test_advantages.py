"""Advantages against slow float64 references that take another route to the same numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from estimators import EPSILON, near, ragged, seeds
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from toys import configure

from rlver.train.advantages import GROUP_ESTIMATORS, dr_grpo, estimate_advantages, gae, grpo, rloo, whiten
from rlver.train.credit import returns

groups_of = {"seed": seeds, "groups": st.integers(1, 4), "group": st.integers(2, 6)}


def padded(rows: list[list[float]]) -> np.ndarray:
    """(B, 6) the rows, NaN behind their ends."""
    table = np.full((len(rows), 6), np.nan)
    for line, values in zip(table, rows, strict=True):
        line[: len(values)] = values
    return table


def check(found: list[list[float]], expected: np.ndarray) -> None:
    """Equal where there is a turn, and no turn too many."""
    for row, line in zip(found, expected, strict=True):
        assert row == near(line[: len(row)].tolist())
        assert np.isnan(line[len(row) :]).all()


@given(**groups_of)
def test_grpo_of_final_rewards(seed: int, groups: int, group: int) -> None:
    rewards = default_rng(seed).random(groups * group)
    expected = []
    for i, reward in enumerate(rewards):
        peers = rewards[i // group * group :][:group]
        # All pairs instead of a mean: their mean squared distance is twice the variance.
        deviation = math.sqrt(sum((a - b) ** 2 for a in peers for b in peers) / 2) / group
        expected.append(sum(reward - peer for peer in peers) / group / (deviation + EPSILON))
    assert [row[0] for row in grpo([[r] for r in rewards.tolist()], group, False)] == near(expected)


@given(**groups_of)
def test_grpo_over_all_turns_of_a_group(seed: int, groups: int, group: int) -> None:
    rows = ragged(default_rng(seed), groups, group)
    table = padded(rows).reshape(groups, group * 6)
    with np.errstate(invalid="ignore"):
        expected = (table - np.nanmean(table, 1, keepdims=True)) / (np.nanstd(table, 1, keepdims=True) + EPSILON)
    check(grpo(rows, group, False), expected.reshape(-1, 6))


def centred_by_turn(rows: list[list[float]], group: int) -> np.ndarray:
    """Values minus the group's mean at the same turn, or the batch's if no other dialogue of the group got so far."""
    table = padded(rows)
    found = table.copy()
    for i in range(len(rows)):
        for turn in range(len(rows[i])):
            column = table[i // group * group :, turn][:group]
            column = column[~np.isnan(column)]
            if len(column) == 1:
                column = table[:, turn][~np.isnan(table[:, turn])]
            found[i, turn] -= column.mean()
    return found


@given(**groups_of)
def test_by_turn(seed: int, groups: int, group: int) -> None:
    rows = ragged(default_rng(seed), groups, group)
    centred = centred_by_turn(rows, group)
    check(dr_grpo(rows, group, True), centred)
    check(grpo(rows, group, True), centred / (np.nanstd(centred) + EPSILON))


@given(**groups_of)
def test_rloo_of_final_rewards_is_the_mean_scaled_up(seed: int, groups: int, group: int) -> None:
    """value - mean of the others = n / (n - 1) * (value - mean of all)."""
    rewards = default_rng(seed).random((groups, group))
    expected = group / (group - 1) * (rewards - rewards.mean(1, keepdims=True))
    found = rloo([[r] for r in rewards.flatten().tolist()], group, False)
    assert [row[0] for row in found] == near(expected.flatten().tolist())


@given(**groups_of, by_turn=st.booleans())
def test_rloo_leaves_its_own_dialogue_out(seed: int, groups: int, group: int, by_turn: bool) -> None:
    rows = ragged(default_rng(seed), groups, group)
    expected = padded(rows)
    for i, row in enumerate(rows):
        mine = range(i // group * group, i // group * group + group)
        for turn, value in enumerate(row):
            others = [rows[j] for j in mine if j != i]
            if by_turn:
                values = [other[turn] for other in others if len(other) > turn]
                if not values:
                    values = [other[turn] for j, other in enumerate(rows) if j != i and len(other) > turn]
            else:
                values = [v for other in others for v in other]
            expected[i, turn] = value - np.mean(values) if values else 0.0
    check(rloo(rows, group, by_turn), expected)


@pytest.mark.parametrize("algo", sorted(GROUP_ESTIMATORS))
@pytest.mark.parametrize("by_turn", [False, True])
def test_equal_rewards_give_no_advantage(algo: str, by_turn: bool) -> None:
    same = [[0.3, 0.3], [0.3, 0.3], [0.7, 0.7], [0.7, 0.7]]
    assert GROUP_ESTIMATORS[algo](same, 2, by_turn) == [near([0.0, 0.0])] * 4
    mixed = GROUP_ESTIMATORS[algo]([[0.3, 0.3], [0.3, 0.3], [1.0, 0.5], [0.0, 0.5]], 2, True)
    assert mixed[:2] == [[0.0, 0.0]] * 2
    assert mixed[2][0] == -mixed[3][0] > 0 and mixed[2][1] == mixed[3][1] == 0


@given(seed=seeds, length=st.integers(1, 25))
def test_gae_is_the_double_sum(seed: int, length: int) -> None:
    rng = default_rng(seed)
    rewards, values = rng.normal(size=(2, length))
    gammas, lams = rng.random((2, length))
    following = np.append(values[1:], 0.0)
    following[-1] = 0.0
    deltas = rewards + gammas * following - values
    expected = [
        sum(np.prod(gammas[t:k] * lams[t:k]) * deltas[k] for k in range(t, length)).item() for t in range(length)
    ]
    advantages, targets = gae(*map(torch.tensor, (rewards, values, gammas, lams)))
    assert advantages.tolist() == near(expected)
    assert targets.tolist() == near((np.array(expected) + values).tolist())


@given(seed=seeds, gamma=st.floats(0, 1), turns=st.integers(1, 9))
def test_gae_with_lambda_one_has_the_returns_as_targets(seed: int, gamma: float, turns: int) -> None:
    """With lambda 1 nothing is bootstrapped, so the critic's values have no influence."""
    rewards, values = default_rng(seed).normal(size=(2, turns))
    constant = torch.full((turns,), gamma, dtype=torch.float64)
    _, targets = gae(torch.tensor(rewards), torch.tensor(values), constant, torch.ones_like(constant))
    assert targets.tolist() == near(returns(rewards.tolist(), gamma))


@given(seed=seeds, length=st.integers(2, 30))
def test_whiten(seed: int, length: int) -> None:
    values = default_rng(seed).normal(3, 2, length)
    expected = (values - values.mean()) / (values.std() + EPSILON)
    assert whiten(torch.tensor(values)).tolist() == near(expected.tolist())
    assert whiten(torch.full((length,), 7.0)).tolist() == near([0.0] * length)


def tokens(rows: list[list[float]], rng: np.random.Generator) -> list[torch.Tensor]:
    """The turn of each token, for turns of one to four tokens."""
    return [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(rng.integers(1, 5, len(row)))) for row in rows]


@given(seed=seeds, credit=st.sampled_from(["terminal", "change", "return", "turn"]), penal=st.booleans())
@pytest.mark.parametrize("algo", sorted(GROUP_ESTIMATORS))
def test_group_algorithms_end_to_end(algo: str, seed: int, credit: Any, penal: bool) -> None:
    """From rewards to tokens: every token of a turn has the advantage of what its turn is worth, charges included."""
    rng = default_rng(seed)
    rows = ragged(rng, 2, 3)
    turns = tokens(rows, rng)
    penalties = [torch.tensor(rng.normal(size=len(at))) for at in turns] if penal else None
    settings = configure(algo=algo, credit=credit, group=3, batch=6, gamma=0.5)
    found, _ = estimate_advantages(settings, turns, rows, [torch.zeros(len(at)) for at in turns], penalties)
    worth = []
    for i, row in enumerate(rows):
        paid = np.array(row)
        for at, charge in zip(turns[i].tolist(), penalties[i].tolist() if penalties else [], strict=bool(penal)):
            paid[at] -= charge
        if credit == "terminal":
            worth.append([float(paid.sum())])
        else:
            gamma = 0.0 if credit == "change" else 0.5
            worth.append([float(sum(gamma**k * paid[t + k] for k in range(len(paid) - t))) for t in range(len(paid))])
    expected = GROUP_ESTIMATORS[algo](worth, 3, credit == "turn")
    for mine, row, at in zip(found, expected, turns, strict=True):
        assert mine.tolist() == pytest.approx([row[t if len(row) > 1 else 0] for t in at.tolist()], rel=1e-4, abs=1e-4)


@given(seed=seeds, group=st.integers(1, 3), penal=st.booleans())
def test_reinforce_plus_plus(seed: int, group: int, penal: bool) -> None:
    """Returns to go by token, KL included; less the peers' mean where there are peers; whitened over all tokens."""
    rng = default_rng(seed)
    rows = ragged(rng, 2, group)
    turns = tokens(rows, rng)
    penalties = [torch.tensor(rng.normal(size=len(at)), dtype=torch.float32) for at in turns] if penal else None
    settings = configure(algo="reinforce++", credit="terminal", group=group, batch=2 * group)
    found, _ = estimate_advantages(settings, turns, rows, [torch.zeros(len(at)) for at in turns], penalties)
    charges = [p.double().numpy() for p in penalties] if penalties else [np.zeros(len(at)) for at in turns]
    togo = []
    for row, at, charge in zip(rows, turns, charges, strict=True):
        # A turn's reward is met at its last token, so that every token of it and all before still have it ahead.
        togo.append([sum(row[int(at[t]) :]) - charge[t:].sum() for t in range(len(at))])
    totals = np.array([sum(row) - charge.sum() for row, charge in zip(rows, charges, strict=True)])
    means = np.repeat(totals.reshape(-1, group).mean(1), group) if group > 1 else np.zeros(len(rows))
    flat = np.concatenate([np.array(row) - mean for row, mean in zip(togo, means, strict=True)])
    expected = (flat - flat.mean()) / (flat.std() + EPSILON)
    assert torch.cat(found).tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


@given(seed=seeds)
def test_ppo_pays_the_divergence_at_its_token(seed: int) -> None:
    rng = default_rng(seed)
    rows = ragged(rng, 3, 1)
    turns = tokens(rows, rng)
    values = [torch.tensor(rng.normal(size=len(at)), dtype=torch.float32) for at in turns]
    penalties = [torch.tensor(rng.normal(size=len(at)), dtype=torch.float32) for at in turns]
    settings = configure(algo="ppo", credit="return", gamma=0.5, lam=0.7, batch=3)
    plain, _ = estimate_advantages(settings, turns, rows, values, None)
    found, targets = estimate_advantages(settings, turns, rows, values, penalties)
    assert not torch.allclose(torch.cat(plain), torch.cat(found))
    raw = []
    for row, at, value, charge in zip(rows, turns, values, penalties, strict=True):
        at, v = at.tolist(), [*value.double().tolist(), 0.0]
        advantage, mine = 0.0, []
        for t in range(len(at) - 1, -1, -1):
            ends = t + 1 == len(at) or at[t + 1] != at[t]
            delta = (row[at[t]] if ends else 0.0) - float(charge[t]) + (0.5 if ends else 1.0) * v[t + 1] - v[t]
            advantage = delta + (0.5 * 0.7 if ends else 1.0) * advantage
            mine.append(advantage)
        raw.append(np.array(mine[::-1]))
    for target, advantage, value in zip(targets, raw, values, strict=True):
        assert target.tolist() == pytest.approx((advantage + value.double().numpy()).tolist(), rel=1e-4, abs=1e-4)
    flat = np.concatenate(raw)
    assert torch.cat(found).tolist() == pytest.approx(((flat - flat.mean()) / flat.std()).tolist(), rel=1e-3, abs=1e-3)
