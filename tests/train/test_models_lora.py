"""Training with LoRA adapters: one frozen base for policy, reference and critic, and folders that hold no base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import random_sample
from toys import algos, fresh, lines, make, quick, save
from transformers import AutoModelForCausalLM

from rlver.core.errors import RlverError
from rlver.core.profile import Profile
from rlver.inference.model_folder import ADAPTER, load_model
from rlver.policies.load import load_policy
from rlver.policies.local import LocalPolicy
from rlver.rollout import play
from rlver.stories.generate import generate
from rlver.train.batch import collate
from rlver.train.config import ModelSettings
from rlver.train.forward import hidden_states, token_logprobs
from rlver.train.models.adapters import CRITIC, active, adapter_parameters, using
from rlver.train.models.critic import AdapterCritic, make_critic
from rlver.train.models.loading import checkpoint_gradients, load_for_training, trainable_parameters
from rlver.train.models.reference import Reference
from rlver.train.plan.live_bytes import LiveBytes
from rlver.train.runs.training_run import run

pytest.importorskip("peft")

RANK = 4


def adapted(base: Path, **settings: Any) -> Any:
    """The model of a folder with an adapter that is no longer fresh."""
    torch.manual_seed(0)
    model, _ = load_for_training(base, ModelSettings(lora=RANK, **settings))
    return disturb(model)


def disturb(model: Any, seed: int = 0) -> Any:
    """Move the policy's adapter away from where it began."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, ADAPTER).values():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logprobs(model: Any, length: int = 40) -> torch.Tensor:
    """Of the tokens of one sample."""
    batch = collate([random_sample(length, 30)])
    return token_logprobs(model, hidden_states(model, batch), batch.targets, 1.0)


def gradients(parameters: Any) -> torch.Tensor:
    """In one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def test_only_adapters_learn(base: Path) -> None:
    model, _ = load_for_training(base, ModelSettings(lora=RANK))
    whole, _ = load_for_training(base, ModelSettings())
    assert torch.equal(logprobs(model), logprobs(whole)), "a fresh adapter changes nothing"
    wide = sum(m.in_features + m.out_features for m in whole.get_decoder().modules() if isinstance(m, torch.nn.Linear))
    assert sum(parameter.numel() for parameter in trainable_parameters(model)) == RANK * wide
    assert [p for p in model.parameters() if p.requires_grad] == trainable_parameters(model)
    some, _ = load_for_training(base, ModelSettings(lora=RANK, lora_targets=["q_proj", "v_proj"], lora_alpha=8))
    assert {name.split(".")[-3] for name in adapter_parameters(some, ADAPTER)} == {"q_proj", "v_proj"}
    assert some.get_decoder().layers[0].self_attn.q_proj.scaling == {ADAPTER: 2.0}
    with pytest.raises(RlverError, match="lora_targets"):
        load_for_training(base, ModelSettings(lora=RANK, lora_targets=["nothing"]))


def test_adapters_are_float32_on_a_base_that_is_not(base: Path) -> None:
    model = adapted(base, dtype="bfloat16")
    assert {parameter.dtype for parameter in trainable_parameters(model)} == {torch.float32}
    assert model.dtype == torch.bfloat16 and logprobs(model).dtype == torch.float32


def test_dropout_is_only_in_training(base: Path) -> None:
    model = adapted(base, lora_dropout=0.5)
    assert torch.equal(logprobs(model.eval()), logprobs(model))
    assert not torch.equal(logprobs(model.train()), logprobs(model))


def test_the_reference_is_the_model_without_its_adapter(base: Path) -> None:
    model, _ = load_for_training(base, ModelSettings(lora=RANK))
    start, batch = logprobs(model), collate([random_sample(40, 30)])
    before = sum(1 for _ in model.parameters())
    reference = Reference(model, 1.0)
    assert sum(1 for _ in model.parameters()) == before, "nothing is copied"
    disturb(model)
    assert torch.equal(reference(batch), start)
    assert not torch.allclose(logprobs(model), start, atol=1e-2) and active(model) == ADAPTER
    # A run that begins with an adapter that has learned is pulled back to that one.
    start = logprobs(model)
    reference = Reference(model, 1.0)
    disturb(model, 1)
    assert torch.equal(reference(batch), start) and not torch.allclose(logprobs(model), start, atol=1e-2)


@pytest.mark.parametrize("forgetful", [False, True])
def test_policy_and_critic_learn_beside_each_other(base: Path, forgetful: bool) -> None:
    """Each gets the gradient that it gets alone, though both passes are over before the first backward pass."""
    model = adapted(base)
    if forgetful:
        checkpoint_gradients(model)
    critic = make_critic(model)
    assert isinstance(critic, AdapterCritic)
    batch = collate([random_sample(40, 30)])
    assert not critic(batch).any(), "it starts at zero"
    with torch.no_grad():
        critic.head.weight.fill_(0.1)
        for parameter in critic.adapter.values():
            parameter += 0.03
    model.train()

    def losses() -> list[torch.Tensor]:
        policy = token_logprobs(model, hidden_states(model, batch), batch.targets, 1.0).sum()
        return [policy, critic(batch).pow(2).sum()]

    sets = [trainable_parameters(model), critic.trainable_parameters()]
    assert not {id(p) for p in sets[0]} & {id(p) for p in sets[1]}
    alone = []
    for which in (0, 1):
        model.zero_grad()
        critic.zero_grad()
        losses()[which].backward()
        alone.append(gradients(sets[which]))
        assert all(p.grad is None or not p.grad.any() for p in sets[1 - which])
    model.zero_grad()
    critic.zero_grad()
    sum(losses()).backward()  # type: ignore[union-attr]
    for found, expected in zip(map(gradients, sets), alone, strict=True):
        assert expected.any()
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert active(model) == ADAPTER


def test_gradient_checkpointing_changes_no_gradient_of_adapters(base: Path) -> None:
    found, held = [], []
    for forgetful in (False, True):
        model = adapted(base)
        if forgetful:
            checkpoint_gradients(model)
        model.train()
        with LiveBytes(model.parameters()) as live:
            hidden = hidden_states(model, collate([random_sample(90, 60)]))
            held.append(live.now)
            hidden.pow(2).sum().backward()
        found.append(gradients(trainable_parameters(model)))
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-6 * float(found[0].abs().max()))
    assert held[1] < 0.4 * held[0]


def test_sampler_and_trainer_agree_with_adapters(speakers: Any, words: Any, base: Path) -> None:
    for algo in ("grpo", "ppo"):
        trainer = make(speakers, words, algo=algo, lora=RANK, kl=0.1, lr=1e-2)
        model = load_for_training(base, trainer.config)[0]
        trainer = type(trainer)(trainer.config, model, words, trainer.users)
        for step in range(3):
            assert trainer.step(step)[0]["logprob_gap"] < 1e-4
        assert adapter_parameters(model, ADAPTER) and not torch.equal(logprobs(model), bare(model))


def bare(model: Any) -> torch.Tensor:
    """Log-probs of the base."""
    with using(model, None):
        return logprobs(model)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA runs of both algorithms."""
    folders = {algo: tmp_path_factory.mktemp("lora") / algo for algo in ("grpo", "ppo")}
    for algo, folder in folders.items():
        run(quick(base, algo, lora=RANK, lr=2e-2), base, folder)
    return folders


@algos
def test_a_run_saves_adapters_and_no_base(base: Path, trained: dict[str, Path], algo: str) -> None:
    folder = trained[algo]
    largest = max(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert not list(folder.rglob("model.safetensors"))
    checkpoint = folder / "checkpoints" / "step-000004"
    assert {path.name for path in checkpoint.glob("*.safetensors")} == {
        "optimizer.safetensors", *(["critic.safetensors", "critic_optimizer.safetensors"] if algo == "ppo" else []),
    }  # fmt: skip
    adapter = folder / "policy" / "adapter_model.safetensors"
    assert largest < 4 * adapter.stat().st_size
    named = json.loads((folder / "policy" / "adapter_config.json").read_text(encoding="utf-8"))
    assert named["base_model_name_or_path"] == str(base.resolve()) and named["r"] == RANK
    assert json.loads((folder / "policy" / "rlver.json").read_text(encoding="utf-8"))["algo"] == algo


@algos
def test_a_broken_run_goes_on_to_the_same_numbers(
    base: Path, trained: dict[str, Path], tmp_path: Path, algo: str
) -> None:
    config = quick(base, algo, lora=RANK, lr=2e-2)
    run(config.model_copy(update={"steps": 2}), base, tmp_path / "run")
    run(config, base, tmp_path / "run", resume=True)
    for name in ("metrics.jsonl", "policy/adapter_model.safetensors", "policy/adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[algo] / name).read_bytes(), name


def test_a_trained_adapter_is_a_policy(base: Path, trained: dict[str, Path], words: Any) -> None:
    """Loaded for benchmark, chat and server, it says what the trained model says; `base` says what the base says."""
    model, _ = load_model(trained["grpo"] / "policy")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    peer = AutoModelForCausalLM.from_pretrained(trained["grpo"] / "policy", local_files_only=True)
    assert torch.allclose(logprobs(model), logprobs(peer), atol=1e-6), "as transformers and peft load it"
    whole, _ = load_model(base)
    assert not torch.allclose(logprobs(model), logprobs(whole), atol=1e-2)
    assert torch.equal(logprobs(load_model(trained["grpo"] / "base")[0]), logprobs(whole))
    policy = load_policy(str(trained["grpo"] / "policy"), "en")
    assert isinstance(policy, LocalPolicy) and policy.max_tokens == 6
    from toys import Toy

    from rlver.core.emotion import get_preset

    profiles: list[Profile] = generate("en", "train", 2)
    assert all(d.turns for d in play(profiles, policy, Toy(), get_preset("sage"), seed=1))


def test_training_goes_on_from_an_adapter(base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    start = trained["grpo"] / "policy"
    config = quick(start, lora=RANK, steps=1)
    run(config, start, tmp_path / "more")
    assert lines(tmp_path / "more")[0]["kl"] < 0.2, "the reference is where this run began"
    # All weights, from the base and what the adapter adds.
    whole, _ = load_for_training(start, ModelSettings())
    assert torch.allclose(logprobs(whole), logprobs(load_model(start)[0]), atol=1e-4)
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert all(parameter.requires_grad for parameter in whole.parameters())
    run(quick(start, steps=1), start, tmp_path / "whole")
    assert (tmp_path / "whole" / "policy" / "model.safetensors").is_file()


def test_adapters_that_do_not_fit_are_reported(
    base: Path, trained: dict[str, Path], words: Any, tmp_path: Path, fails: Callable[..., str]
) -> None:
    start = trained["grpo"] / "policy"
    with pytest.raises(RlverError, match="rank 4, not 8; set lora=4"):
        load_for_training(start, ModelSettings(lora=8))
    half = tmp_path / "half"
    shutil.copytree(trained["grpo"], half)
    shutil.rmtree(half / "checkpoints" / "step-000004")
    run(quick(base, lora=2, steps=2), base, tmp_path / "other")
    checkpoint = half / "checkpoints" / "step-000002"
    shutil.rmtree(checkpoint)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-000002", checkpoint)
    with pytest.raises(RlverError, match="another model"):
        run(quick(base, lora=RANK, lr=2e-2), base, half, resume=True)
    with pytest.raises(RlverError, match="lora"):
        run(quick(base, lora=2, lr=2e-2), base, half, resume=True)


def test_a_lost_base_and_a_missing_package_are_reported(
    trained: dict[str, Path], words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(trained["grpo"] / "policy", lost)
    file = lost / "adapter_config.json"
    named = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(named | {"base_model_name_or_path": "gone/away"}), encoding="utf-8")
    sentence = fails("--policy", str(lost), "--set", "lora=4")
    assert "gone/away, which does not exist" in sentence and "adapter_config.json" in sentence
    wide = save(words, fresh(words, hidden=48), tmp_path / "wide")
    file.write_text(json.dumps(named | {"base_model_name_or_path": str(wide)}), encoding="utf-8")
    assert str(lost) in fails("--policy", str(lost), "--set", "lora=4")
    file.write_text("{", encoding="utf-8")
    assert "adapter_config.json" in fails("--policy", str(lost))
    monkeypatch.setattr("rlver.inference.model_folder.find_spec", lambda name: None)
    with pytest.raises(RlverError, match=r"needs peft: pip install 'rlver\[lora\]'"):
        load_model(lost)
    wide_run = fails("--policy", str(wide), "--set", "lora=4")
    assert "lora=4" in wide_run and "pip install 'rlver[lora]'" in wide_run


def test_the_critic_keeps_only_its_adapter(base: Path) -> None:
    model = adapted(base)
    critic = make_critic(model)
    sizes = sum(parameter.numel() for parameter in critic.parameters())
    assert sizes == sum(p.numel() for p in trainable_parameters(model)) + model.config.hidden_size + 1
    assert sum(tensor.numel() for tensor in critic.state_dict().values()) == sizes
    assert adapter_parameters(model, CRITIC).keys() == adapter_parameters(model, ADAPTER).keys()
