"""The trainer on models of a few thousand weights: what is trained, how it weighs, and that reward goes up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import (
    Toy,
    algos,
    configure,
    gradient_of,
    make,
    modes,
    records_of,
    standardised,
    turn_logprobs,
    weights_of,
)

import rlver.train.advantages as advantages_module
from rlver.core.dialogue import StopReason
from rlver.stories.generate import generate
from rlver.train.batch import from_dialogue
from rlver.train.credit import returns, turn_rewards
from rlver.train.trainer import Trainer


@algos
@modes
def test_sampler_and_trainer_agree(speakers: Any, words: Any, algo: str, think: bool) -> None:
    trainer = make(speakers, words, algo=algo, think=think, max_tokens=14, lr=1e-3, minibatches=2)
    turns = set()
    for step in range(3):
        metrics, dialogues = trainer.step(step)
        assert 0 <= metrics["logprob_gap"] < 1e-4
        turns |= {len(dialogue.turns) for dialogue in dialogues}
        assert any(dialogue.stop is StopReason.FAREWELL for dialogue in dialogues)
    assert len(turns) > 1


@modes
def test_what_is_trained_is_what_was_sampled(speakers: Any, words: Any, think: bool) -> None:
    trainer = make(speakers, words, think=think, max_tokens=14)
    _, dialogues = trainer.step(0)
    chat = trainer.policy.chat
    for dialogue in dialogues:
        sample, records = from_dialogue(dialogue), records_of(dialogue)
        assert sample.ids[sample.trained].tolist() == [i for record in records for i in record.token_ids]
        assert sample.logprobs.tolist() == pytest.approx([p for record in records for p in record.logprobs])
        assert [chat.decode(record.token_ids) for record in records] == [turn.raw for turn in dialogue.turns]
        # What is not trained is everything else: system prompt, the user's words, marks around them.
        rest = torch.ones(len(sample), dtype=torch.bool)
        rest[sample.trained] = False
        expected = chat.opening(dialogue.opening)
        for turn, record in zip(dialogue.turns[:-1], records, strict=False):
            assert turn.reaction is not None
            if think:
                expected += [*chat.text(turn.reply), chat.stop]
            elif record.token_ids[-1] != chat.stop:
                expected.append(chat.stop)
            expected += chat.turn(turn.reaction.utterance)
        assert sample.ids[rest].tolist() == expected


@modes
@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_the_gradient_by_hand(speakers: Any, words: Any, think: bool, kl: float) -> None:
    """Every dialogue weighs the same however long it is, nothing but sampled tokens is in the loss, kl has its sign.

    The model was moved away from its reference, so that the divergence has a gradient.
    """
    trainer = make(speakers, words, think=think, kl=kl, credit="terminal", max_tokens=14, max_grad_norm=1e9)
    reference = copy.deepcopy(trainer.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model = copy.deepcopy(trainer.model)
    metrics, dialogues = trainer.step(0)
    advantages = standardised([dialogue.reward for dialogue in dialogues], 4)
    lengths = {sum(len(record.token_ids) for record in records_of(dialogue)) for dialogue in dialogues}
    assert max(lengths) >= 3 * min(lengths) and any(advantages)

    model.zero_grad()
    loss = torch.tensor(0.0)
    for dialogue, advantage in zip(dialogues, advantages, strict=True):
        new = torch.cat(turn_logprobs(model, dialogue))
        with torch.no_grad():
            start = torch.cat(turn_logprobs(reference, dialogue))
        ratio = start - new
        loss = loss - (advantage * new - kl * (ratio.exp() - 1 - ratio)).mean() / len(dialogues)
    loss.backward()
    found, expected = gradient_of(trainer.model), gradient_of(model)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert metrics["kl"] > 1e-3 if kl else "kl" not in metrics


@algos
@modes
def test_the_size_of_a_forward_pass_changes_nothing(speakers: Any, words: Any, algo: str, think: bool) -> None:
    weights, gradients, start = [], [], weights_of(speakers[think])
    for tokens in (1, 100_000):
        trainer = make(speakers, words, algo=algo, think=think, micro_tokens=tokens, lr=1e-4, kl=0.1, entropy=0.01)
        trainer.step(0)
        modules = [trainer.model, *([trainer.critic] if trainer.critic else [])]
        weights.append(torch.cat([weights_of(module) for module in modules]))
        gradients.append(torch.cat([gradient_of(module) for module in modules]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5
    assert (weights[0][: len(start)] - start).abs().max() > 5e-5
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


@algos
def test_what_was_rewarded_becomes_more_likely(speakers: Any, words: Any, algo: str) -> None:
    trainer = make(speakers, words, algo=algo, credit="terminal", lr=1e-4, batch=16)
    before = copy.deepcopy(trainer.model)
    _, dialogues = trainer.step(0)
    rewards = [dialogue.reward for dialogue in dialogues]
    if algo == "grpo":
        advantages = standardised(rewards, 4)
    else:  # the critic knows nothing yet: what counts is the mean over all tokens
        sizes = [sum(len(record.token_ids) for record in records_of(dialogue)) for dialogue in dialogues]
        advantages = (np.array(rewards) - np.average(rewards, weights=sizes)).tolist()
    assert max(advantages) > 0 > min(advantages)
    moved = {True: 0.0, False: 0.0}
    with torch.no_grad():
        for dialogue, advantage in zip(dialogues, advantages, strict=True):
            gain = [torch.cat(turn_logprobs(model, dialogue)).mean() for model in (trainer.model, before)]
            moved[advantage > 0] += abs(advantage) * float(gain[0] - gain[1])
    assert moved[True] > 0 > moved[False]


@algos
def test_nothing_moves_without_a_reason(speakers: Any, words: Any, algo: str) -> None:
    """A tiny rate moves nothing; and where all rollouts fare alike, GRPO has nothing to learn."""
    trainer = make(speakers, words, algo=algo, lr=1e-12, kl=0.05)
    before = weights_of(trainer.model)
    for step in range(2):
        trainer.step(step)
    assert (weights_of(trainer.model) - before).abs().max() < 1e-9
    assert torch.equal(weights_of(trainer.reference.model), before)

    alike = make(speakers, words, Toy(points=0.0), algo=algo, lr=1e-2)
    metrics, _ = alike.step(0)
    if algo == "grpo":
        assert metrics["zero_variance_groups"] == 1
        assert torch.equal(weights_of(alike.model), before)


def test_kl_pulls_back_to_the_start(speakers: Any, words: Any) -> None:
    trainer = make(speakers, words, Toy(points=0.0), lr=1e-3, kl=1.0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    moved = copy.deepcopy(trainer.model)
    metrics, dialogues = trainer.step(0)
    assert metrics["kl"] > 0.01 and metrics["loss"] == pytest.approx(0, abs=1e-6)

    @torch.no_grad()
    def divergence(model: Any) -> float:
        """KL(model || reference) at every sampled token, over the whole vocabulary."""
        total = 0.0
        for dialogue in dialogues:
            records = records_of(dialogue)
            ids = torch.tensor([[*records[-1].prompt_ids, *records[-1].token_ids]])
            starts = [(len(record.prompt_ids), len(record.token_ids)) for record in records]
            at = [place - 1 for start, count in starts for place in range(start, start + count)]
            p, q = (torch.log_softmax(m(input_ids=ids).logits[0, at], -1) for m in (model, trainer.reference.model))
            total += float((p.exp() * (p - q)).sum(-1).mean())
        return total

    assert divergence(trainer.model) < 0.98 * divergence(moved)
    assert divergence(trainer.reference.model) == 0


@pytest.mark.parametrize("credit", ["turn", "terminal"])
@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_ppo_discounts_turns_and_not_tokens(
    speakers: Any, words: Any, monkeypatch: pytest.MonkeyPatch, credit: Any, lam: float
) -> None:
    """GAE over tokens is GAE over turns in which the critic is asked at every token."""
    calls: list[tuple[Tensor, ...]] = []

    def spy(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        found = real(*tensors)
        calls.append((tensors[1], *found))
        return found

    real = advantages_module.gae
    monkeypatch.setattr(advantages_module, "gae", spy)
    trainer = make(speakers, words, algo="ppo", credit=credit, lam=lam, gamma=0.5, critic_lr=1e-2)
    trainer.step(0)
    calls.clear()
    _, dialogues = trainer.step(1)
    gamma = 0.5 if credit == "turn" else 1.0
    for dialogue, (values, advantages, targets) in zip(dialogues, calls, strict=True):
        assert values.abs().max() > 0
        assert torch.allclose(targets, advantages + values)
        rewards = turn_rewards(dialogue, credit)
        sizes = [len(record.token_ids) for record in records_of(dialogue)]
        starts = np.cumsum([0, *sizes])
        # lambda-return of a turn: its reward, then the next turn's first value or lambda-return.
        expected = 0.0
        for turn in range(len(sizes) - 1, -1, -1):
            last = turn == len(sizes) - 1
            value = 0.0 if last else float(values[starts[turn + 1]])
            expected = rewards[turn] + gamma * ((1 - lam) * value + lam * expected)
            part = targets[starts[turn] : starts[turn + 1]]
            assert part.tolist() == pytest.approx([expected] * sizes[turn], abs=1e-5)
        if lam == 1:
            assert [float(targets[start]) for start in starts[:-1]] == pytest.approx(returns(rewards, gamma), abs=1e-5)


@algos
def test_reward_goes_up(speakers: Any, words: Any, algo: str) -> None:
    trainer = make(speakers, words, Toy(liked="w", leaves=False, turns=3), algo=algo, lr=1e-2, critic_lr=1e-2)
    rewards = [trainer.step(step)[0]["reward"] for step in range(20)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:2]) + 0.15, rewards


def test_profiles_of_a_file_are_met_in_turn(speakers: Any, words: Any) -> None:
    profiles = generate("en", "train", 6)
    config = configure(batch=4, group=2)
    trainer = Trainer(config, copy.deepcopy(speakers[False]), words, Toy(), profiles)
    met = []
    for step in range(6):
        _, dialogues = trainer.step(step)
        ids = [dialogue.profile.id for dialogue in dialogues]
        assert ids[0] == ids[1] and ids[2] == ids[3]
        met += ids[::2]
    every = {profile.id for profile in profiles}
    assert set(met[:6]) == set(met[6:]) == every and met[:6] != met[6:]
