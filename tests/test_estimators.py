"""Estimators and losses against slow float64 references that take another route to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from rlver.core.dialogue import Dialogue, Reaction, StopReason
from rlver.core.emotion import PRESETS
from rlver.stories.generate import generate
from rlver.train.advantages.gae import gae, whiten
from rlver.train.advantages.grpo import grpo_terminal, grpo_turns
from rlver.train.credit import returns, turn_rewards
from rlver.train.losses.entropy import entropy
from rlver.train.losses.kl import kl_k3
from rlver.train.losses.policy import policy_loss
from rlver.train.losses.value import value_loss
from rlver.train.models.critic import explained_variance

EPSILON = 1e-6
"""What the estimators add to a standard deviation before they divide by it."""
seeds = st.integers(0, 100_000)


def near(wanted: object) -> object:
    """Equal to 1e-6."""
    return pytest.approx(wanted, rel=1e-6, abs=1e-6)


def ragged(rng: Generator, groups: int, group: int) -> list[list[float]]:
    """Numbers for the turns of groups * group dialogues of one to six turns."""
    return [rng.normal(size=rng.integers(1, 7)).tolist() for _ in range(groups * group)]


@given(seed=seeds, groups=st.integers(1, 5), group=st.integers(2, 6))
def test_grpo_terminal(seed: int, groups: int, group: int) -> None:
    rewards = default_rng(seed).random(groups * group)
    expected = []
    for i, reward in enumerate(rewards):
        peers = rewards[i // group * group :][:group]
        # All pairs instead of a mean: their mean squared distance is twice the variance.
        deviation = math.sqrt(sum((a - b) ** 2 for a in peers for b in peers) / 2) / group
        expected.append(sum(reward - peer for peer in peers) / group / (deviation + EPSILON))
    assert grpo_terminal(rewards.tolist(), group) == near(expected)


def test_a_group_without_variance_teaches_nothing() -> None:
    advantages = grpo_terminal([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.0, 0.0, 1.0], 3)
    assert advantages[:6] == [0.0] * 6
    assert advantages[6] == advantages[7] < 0 < advantages[8]
    same = [[0.3, -0.1], [0.3, -0.1], [1.0, 0.2, 0.1], [1.0, 0.2, 0.1]]
    assert grpo_turns(same, 2) == [near([0.0] * len(row)) for row in same]
    mixed = grpo_turns([[0.3, 0.1], [0.3, 0.1], [1.0, 0.5], [0.0, 0.5]], 2)
    assert mixed[:2] == [[0.0, 0.0]] * 2
    assert mixed[2][0] == -mixed[3][0] > 0 and mixed[2][1] == mixed[3][1] == 0


@given(seed=seeds, groups=st.integers(1, 4), group=st.integers(2, 5))
def test_grpo_turns(seed: int, groups: int, group: int) -> None:
    rows = ragged(default_rng(seed), groups, group)
    table = np.full((groups * group, 6), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    centred = table.copy()
    for i in range(groups * group):
        for turn in range(len(rows[i])):
            column = table[i // group * group :, turn][:group]
            column = column[~np.isnan(column)]
            if len(column) == 1:  # nobody else of the group got so far
                column = table[:, turn][~np.isnan(table[:, turn])]
            centred[i, turn] -= column.mean()
    centred /= np.nanstd(centred) + EPSILON
    for row, values in zip(centred, grpo_turns(rows, group), strict=True):
        assert values == near(row[: len(values)].tolist())
        assert np.isnan(row[len(values) :]).all()


@given(seed=seeds, gamma=st.floats(0, 1), turns=st.integers(1, 9))
def test_returns(seed: int, gamma: float, turns: int) -> None:
    rewards = default_rng(seed).normal(size=turns)
    expected = [sum(gamma ** (k - t) * rewards[k] for k in range(t, turns)) for t in range(turns)]
    assert returns(rewards.tolist(), gamma) == near(expected)


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
    """Whatever the critic says: with lambda 1 nothing is bootstrapped."""
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


@given(seed=seeds, clip=st.floats(0.05, 0.5))
def test_policy_loss_and_its_gradient(seed: int, clip: float) -> None:
    rng = default_rng(seed)
    old, advantages = rng.normal(size=(2, 30))
    logprobs = old + rng.normal(0, 0.4, 30)
    expected, mask, slope = [], [], []
    for new, before, advantage in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(new - before)
        # Case by case: gains beyond the range are not counted, losses are.
        beyond = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
        bound = 1 + clip if advantage > 0 else 1 - clip
        expected.append(-(bound if beyond else ratio) * advantage)
        mask.append(float(beyond))
        slope.append(0.0 if beyond else -ratio * advantage)
    variable = torch.tensor(logprobs, requires_grad=True)
    loss, clipped = policy_loss(variable, torch.tensor(old), torch.tensor(advantages), clip)
    loss.sum().backward()
    assert loss.tolist() == near(expected)
    assert clipped.tolist() == mask
    assert variable.grad is not None and variable.grad.tolist() == near(slope)


@given(seed=seeds, clip=st.floats(0.05, 1))
def test_value_loss_and_its_gradient(seed: int, clip: float) -> None:
    rng = default_rng(seed)
    values, old, targets = rng.normal(size=(3, 30))
    expected, slope = [], []
    for value, before, target in zip(values, old, targets, strict=True):
        error = value - target
        if abs(value - before) <= clip:
            worst, bends = error, True
        else:
            bound = before + math.copysign(clip, value - before) - target
            worst, bends = (bound, False) if abs(bound) > abs(error) else (error, True)
        expected.append(worst**2 / 2)
        slope.append(error if bends else 0.0)
    variable = torch.tensor(values, requires_grad=True)
    loss = value_loss(variable, torch.tensor(old), torch.tensor(targets), clip)
    loss.sum().backward()
    assert loss.tolist() == near(expected)
    assert variable.grad is not None and variable.grad.tolist() == near(slope)


@given(seed=seeds, size=st.integers(2, 12))
def test_kl_is_unbiased_and_never_negative(seed: int, size: int) -> None:
    p, q = default_rng(seed).dirichlet(np.ones(size), 2).clip(1e-12)
    p, q = p / p.sum(), q / q.sum()
    estimates = kl_k3(torch.tensor(np.log(p)), torch.tensor(np.log(q))).numpy()
    assert (estimates >= -1e-12).all()
    # Every outcome with its probability: the expectation without sampling.
    assert float(p @ estimates) == near(float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))))
    assert kl_k3(torch.tensor(np.log(p)), torch.tensor(np.log(p))).abs().max() == 0


@given(seed=seeds, size=st.integers(2, 12))
def test_entropy(seed: int, size: int) -> None:
    p = default_rng(seed).dirichlet(np.ones(size), 4).clip(1e-12)
    expected = [-sum(a * math.log2(a) for a in row) * math.log(2) for row in p]
    assert entropy(torch.tensor(np.log(p))).tolist() == near(expected)
    uniform = torch.full((1, size), -math.log(size), dtype=torch.float64)
    assert entropy(uniform).item() == near(math.log(size))


@given(seed=seeds)
def test_explained_variance(seed: int) -> None:
    targets, noise = default_rng(seed).normal(size=(2, 40))
    values = targets + 0.5 * noise
    residual = targets - values
    expected = 1 - (np.mean(residual**2) - residual.mean() ** 2) / (np.mean(targets**2) - targets.mean() ** 2)
    assert explained_variance(torch.tensor(values), torch.tensor(targets)) == near(expected)
    assert explained_variance(torch.tensor(targets), torch.tensor(targets)) == 1
    assert explained_variance(torch.tensor(targets) + 3, torch.tensor(targets)) == near(1.0)
    assert explained_variance(torch.full((40,), 2.0), torch.tensor(targets)) == near(0.0)
    assert explained_variance(torch.tensor(values), torch.full((40,), 0.4)) == 0


def dialogue_of(preset: str, changes: list[float], breaks: bool) -> Dialogue:
    """A dialogue with these reactions, as far as it gets; `breaks` ends it with a broken format."""
    dialogue = Dialogue(generate("en", "train", 1)[0], PRESETS[preset], think=True)
    dialogue.begin("Hello.")
    for change in changes:
        dialogue.reply("<think>Plan.</think>Reply.")
        dialogue.react(Reaction(change=change, utterance="And then it rained."))
        if dialogue.stop is not None:
            return dialogue
    if breaks:
        dialogue.reply("No plan at all.")
    return dialogue


dialogues = st.builds(
    dialogue_of,
    st.sampled_from(sorted(PRESETS)),
    st.lists(st.sampled_from([-10.0, -5.0, 0.0, 5.0, 10.0]), min_size=1, max_size=9),
    st.booleans(),
)


@given(dialogue=dialogues)
def test_turn_rewards_telescope(dialogue: Dialogue) -> None:
    rewards = turn_rewards(dialogue, "turn")
    end = 0.0 if dialogue.stop is StopReason.BAD_FORMAT else dialogue.score
    assert len(rewards) == len(dialogue.turns)
    assert sum(rewards) == near((end - dialogue.preset.start) / 10)
    # The undiscounted return of a turn is all that it and the later ones moved.
    before = [dialogue.preset.start, *(turn.score for turn in dialogue.turns[:-1])]
    assert returns(rewards, 1.0) == near([(end - score) / 10 for score in before])


@given(dialogue=dialogues)
def test_terminal_credit_pays_at_the_end_alone(dialogue: Dialogue) -> None:
    *early, last = turn_rewards(dialogue, "terminal")
    assert early == [0.0] * (len(dialogue.turns) - 1)
    assert last == dialogue.reward
    assert returns([*early, last], 1.0) == [dialogue.reward] * len(dialogue.turns)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_broken_format_loses_all(preset: str) -> None:
    dialogue = dialogue_of(preset, [10.0, 10.0], breaks=True)
    start = PRESETS[preset].start
    assert turn_rewards(dialogue, "turn") == near([1.0, 1.0, -(start + 20) / 10])
    assert turn_rewards(dialogue, "terminal") == [0.0, 0.0, 0.0]
    assert sum(turn_rewards(dialogue_of(preset, [], breaks=True), "turn")) == near(-start / 10)
