"""Every option of the algorithm shows its effect on a step of a tiny run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toys import Toy, configure, gradient_of, make, weights_of

from rlver.inference.engines.built_in import BuiltInEngine
from rlver.train.config import load_config
from rlver.train.trainer import Trainer


@pytest.mark.parametrize("algo", ["grpo", "rloo", "dr-grpo", "reinforce++", "ppo"])
@pytest.mark.parametrize("credit", ["terminal", "change", "return", "turn"])
def test_every_algorithm_runs_with_every_credit(speakers: Any, words: Any, algo: Any, credit: Any) -> None:
    trainer = make(speakers, words, algo=algo, credit=credit, lr=1e-3)
    before = weights_of(trainer.model)
    metrics, _ = trainer.step(0)
    assert metrics["logprob_gap"] < 1e-4 and (weights_of(trainer.model) - before).abs().max() > 0
    assert all(value == value for value in metrics.values())


def gradient(speakers: Any, words: Any, **settings: Any) -> torch.Tensor:
    """The gradient of the first update, of a model that was moved away from its reference."""
    trainer = make(speakers, words, lr=1e-12, max_grad_norm=1e9, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trainer.step(0)
    return gradient_of(trainer.model)


@pytest.mark.parametrize(
    "option",
    [
        {"algo": "rloo"},
        {"algo": "dr-grpo"},
        {"algo": "reinforce++"},
        {"credit": "change"},
        {"credit": "return"},
        {"credit": "terminal"},
        {"gamma": 0.9},
        {"weighting": "turn"},
        {"weighting": "token"},
        {"weighting": "constant"},
        {"kl": 0.5},
        {"kl": 0.5, "kl_estimator": "k1"},
        {"kl": 0.5, "kl_estimator": "k2"},
        {"kl": 0.5, "kl_in": "reward"},
        {"entropy": 0.1},
        {"imitation": 0.5},
        {"imitation": 0.5, "imitation_temperature": 0.05},
    ],
    ids=str,
)
def test_every_option_changes_the_gradient(speakers: Any, words: Any, option: dict[str, Any]) -> None:
    plain, bent = gradient(speakers, words), gradient(speakers, words, **option)
    assert (plain - bent).abs().max() > 1e-4 * plain.abs().max()


@pytest.mark.parametrize("option", [{"clip_high": 5.0}, {"dual_clip": 1.01}, {"clip": 0.01}], ids=str)
def test_clips_act_once_the_policy_has_moved(speakers: Any, words: Any, option: dict[str, Any]) -> None:
    weights = []
    for settings in ({}, option):
        trainer = make(speakers, words, lr=3e-2, epochs=3, minibatches=2, **settings)
        metrics, _ = trainer.step(0)
        assert metrics["clip_fraction"] > 0
        weights.append(weights_of(trainer.model))
    assert not torch.equal(*weights)


def test_a_critic_without_a_clip_moves_further(speakers: Any, words: Any) -> None:
    losses = []
    for clip in (1e-6, None):
        trainer = make(speakers, words, algo="ppo", value_clip=clip, epochs=4, critic_lr=1e-2)
        trainer.step(0)
        losses.append(trainer.step(1)[0]["value_loss"])
    assert losses[1] < losses[0]


def test_dialogues_weigh_the_same_by_default(speakers: Any, words: Any) -> None:
    """The order of the dialogues and the number of micro-batches change nothing."""
    one = gradient(speakers, words, micro_tokens=100_000)
    many = gradient(speakers, words, micro_tokens=200)
    assert torch.allclose(one, many, atol=1e-6 * float(one.abs().max()), rtol=1e-3)


class Moody(Toy):
    """Delighted by everything some users hear, and moved by letters in the others."""

    async def open(self, dialogue: Any, seed: int) -> Any:
        """The seed decides whether a user is easy."""
        self.easy = getattr(self, "easy", {})
        self.easy[seed] = seed % 2 == 0
        return await super().open(dialogue, seed)

    async def react(self, dialogue: Any, seed: int) -> Any:
        """Easy users like all replies alike."""
        reaction = await super().react(dialogue, seed)
        if self.easy[seed]:
            return reaction.model_copy(update={"change": 10.0, "utterance": "Go on."})
        return reaction


@pytest.mark.parametrize("way", ["keep", "skip", "refill"])
def test_groups_of_equal_rewards(speakers: Any, words: Any, way: Any) -> None:
    trainer = make(speakers, words, Moody(), zero_variance=way, batch=16, group=4, refills=4)
    metrics, dialogues = trainer.step(0)
    flat = [len({d.reward for d in dialogues[i : i + 4]}) == 1 for i in range(0, len(dialogues), 4)]
    assert 0 < metrics["zero_variance_groups"] < 1
    if way == "keep":
        assert len(dialogues) == 16 and any(flat)
    else:
        assert not any(flat) and (len(dialogues) == 16) is (way == "refill")


@pytest.mark.parametrize("way", ["skip", "refill"])
def test_a_step_without_any_varied_group_succeeds(speakers: Any, words: Any, way: Any) -> None:
    trainer = make(speakers, words, Toy(points=0.0), zero_variance=way)
    before = weights_of(trainer.model)
    metrics, dialogues = trainer.step(0)
    assert metrics["zero_variance_groups"] == 1 and dialogues
    assert torch.equal(weights_of(trainer.model), before)


def test_another_sampler_is_corrected_for(speakers: Any, words: Any) -> None:
    """A policy that is sampled by one model and trained as another."""
    trainer = make(speakers, words, importance_cap=1.5, lr=1e-3)
    other = copy.deepcopy(trainer.model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    trainer.policy.engine = BuiltInEngine(other)
    used: list[Any] = []
    compute = trainer.compute_gradients
    trainer.compute_gradients = lambda samples, row: (used.extend(row), compute(samples, row))[1]  # type: ignore[method-assign]
    metrics, _ = trainer.step(0)
    assert metrics["logprob_gap"] > 0.01 and metrics["importance"] != 1
    for experience in used:
        ratio = (experience.old_logprobs - experience.sampler_logprobs).exp()
        assert torch.equal(experience.importance, ratio.clamp(max=1.5))
    assert any((e.importance == 1.5).any() for e in used) and any((e.importance < 1).any() for e in used)


def test_a_true_sampler_needs_no_correction(speakers: Any, words: Any) -> None:
    weights = []
    for cap in (None, 2.0):
        trainer = make(speakers, words, importance_cap=cap, lr=1e-3)
        trainer.step(0)
        weights.append(weights_of(trainer.model))
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_names_and_defaults_that_depend_on_each_other() -> None:
    assert load_config(None, ["algo=gae"], {}).algo == "ppo"
    assert load_config(None, [], {"algo": "dr-grpo"}).weighting == "constant"
    assert load_config(None, ["weighting=token"], {"algo": "dr-grpo"}).weighting == "token"
    assert load_config(None, ["schedule={0: 0, 9: 1}"], {"curriculum": "schedule"}).schedule == {0: 0.0, 9: 1.0}


def test_imitation_copies_the_best(speakers: Any, words: Any) -> None:
    """With nothing but imitation of the very best, that dialogue becomes likelier than the rest."""
    config = configure(imitation=1.0, imitation_temperature=0.02, credit="terminal", lr=1e-3)
    trainer = Trainer(config, copy.deepcopy(speakers[False]), words, Toy())
    metrics, _ = trainer.step(0)
    assert metrics["imitation"] > 0
