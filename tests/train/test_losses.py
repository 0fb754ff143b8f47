"""Losses against slow float64 references that take another route to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from estimators import near, seeds
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from rlver.train.losses import (
    entropy,
    imitation_loss,
    imitation_weights,
    importance_weights,
    kl_divergence,
    policy_loss,
    token_weights,
    value_loss,
)
from rlver.train.models.critic import explained_variance


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


@given(seed=seeds, low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.9), dual=st.floats(1.2, 4))
def test_clip_higher_and_dual_clip(seed: int, low: float, high: float, dual: float) -> None:
    rng = default_rng(seed)
    old, advantages = rng.normal(size=(2, 30))
    logprobs = old + rng.normal(0, 0.8, 30)
    expected, mask, slope = [], [], []
    for new, before, advantage in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(new - before)
        # A bad token costs its ratio, but no less than the lower bound and no more than `dual`.
        used = min(ratio, 1 + high) if advantage > 0 else min(max(ratio, 1 - low), dual)
        expected.append(-used * advantage)
        mask.append(float(used != ratio))
        slope.append(0.0 if used != ratio else -ratio * advantage)
    variable = torch.tensor(logprobs, requires_grad=True)
    loss, clipped = policy_loss(variable, torch.tensor(old), torch.tensor(advantages), low, high, dual)
    loss.sum().backward()
    assert loss.tolist() == near(expected)
    assert clipped.tolist() == mask
    assert variable.grad is not None and variable.grad.tolist() == near(slope)


@given(seed=seeds, dialogues=st.integers(1, 5))
def test_weights_of_tokens(seed: int, dialogues: int) -> None:
    rng = default_rng(seed)
    sizes = [rng.integers(1, 5, rng.integers(1, 6)).tolist() for _ in range(dialogues)]
    turns = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in sizes]
    losses = [rng.normal(size=sum(row)) for row in sizes]
    replies = [part for row, size in zip(losses, sizes, strict=True) for part in np.split(row, np.cumsum(size)[:-1])]
    expected = {
        "dialogue": np.mean([row.mean() for row in losses]),
        "turn": np.mean([reply.mean() for reply in replies]),
        "token": np.concatenate(losses).mean(),
        "constant": np.concatenate(losses).sum() / (60 * dialogues),
    }
    for name, wanted in expected.items():
        weights = token_weights(turns, name, max_tokens=60)  # type: ignore[arg-type]
        found = sum(float(weight.double() @ torch.tensor(row)) for weight, row in zip(weights, losses, strict=True))
        assert found == pytest.approx(float(wanted), rel=1e-5, abs=1e-6)


@given(seed=seeds, temperature=st.floats(0.05, 2))
def test_imitation_prefers_what_went_well(seed: int, temperature: float) -> None:
    rng = default_rng(seed)
    rewards = rng.random(6)
    weights = imitation_weights(torch.tensor(rewards), temperature)
    raw = np.exp(rewards / temperature)
    assert weights.tolist() == near((raw / raw.mean()).tolist())
    logprobs = torch.tensor(rng.normal(size=6), requires_grad=True)
    imitation_loss(logprobs, weights).sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == near((-weights).tolist())


@given(seed=seeds, size=st.integers(2, 8))
def test_importance_makes_the_samplers_tokens_the_trainers(seed: int, size: int) -> None:
    """Without a cap, the mean over the sampler's tokens is that over the trainer's; with one, none weighs more."""
    rng = default_rng(seed)
    sampler, trainer = rng.dirichlet(np.ones(size), 2).clip(1e-9)
    sampler, trainer = sampler / sampler.sum(), trainer / trainer.sum()
    values = rng.normal(size=size)
    logs = torch.tensor(np.log(trainer)), torch.tensor(np.log(sampler))
    free = importance_weights(*logs, cap=math.inf).numpy()
    assert float((sampler * free) @ values) == near(float(trainer @ values))
    assert importance_weights(*logs, cap=2.0).tolist() == near([min(2.0, weight) for weight in free.tolist()])


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
def test_estimates_of_the_divergence(seed: int, size: int) -> None:
    p, q = default_rng(seed).dirichlet(np.ones(size), 2).clip(1e-12)
    p, q = p / p.sum(), q / q.sum()
    mine, theirs = torch.tensor(np.log(p)), torch.tensor(np.log(q))
    divergence = float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    # Every outcome with its probability: the expectation without sampling.
    k1, k2, k3 = (kl_divergence(mine, theirs, name).numpy() for name in ("k1", "k2", "k3"))
    assert float(p @ k1) == near(divergence) and float(p @ k3) == near(divergence)
    assert k2.tolist() == near([0.5 * math.log(a / b) ** 2 for a, b in zip(p, q, strict=True)])
    assert (k3 >= -1e-12).all()
    for name in ("k1", "k2", "k3"):
        assert kl_divergence(mine, mine, name).abs().max() == 0


@given(seed=seeds, size=st.integers(2, 12))
def test_the_gradient_of_k2_is_that_of_the_divergence(seed: int, size: int) -> None:
    """As a loss on samples, k1 has an expected gradient of zero."""
    rng = default_rng(seed)
    logits = torch.tensor(rng.normal(size=size), requires_grad=True)
    theirs = torch.log_softmax(torch.tensor(rng.normal(size=size)), 0)
    mine = torch.log_softmax(logits, 0)
    (wanted,) = torch.autograd.grad((mine.exp() * (mine - theirs)).sum(), logits, retain_graph=True)
    for name, expected in (("k2", wanted), ("k1", torch.zeros(size))):
        loss = (mine.detach().exp() * kl_divergence(mine, theirs, name)).sum()
        (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert found.tolist() == near(expected.tolist())


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
