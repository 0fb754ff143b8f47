"""The memory plan: it matches the measured memory of small models, and its figures for a large model are pinned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Toy, quick, records_of, save
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlver.cli.main import main
from rlver.core.profile import ChatIntention
from rlver.formats.profile_files import write_profiles
from rlver.stories.generate import generate
from rlver.train.batch import from_dialogue
from rlver.train.config import TrainConfig
from rlver.train.models.loading import load_for_training
from rlver.train.plan.live_bytes import LiveBytes
from rlver.train.plan.longest_dialogue import LongestDialogue, longest_dialogue
from rlver.train.plan.memory import MemoryPlan, plan_memory
from rlver.train.trainer import Trainer
from rlver.users.embedded.user import EmbeddedUser

LARGE = Qwen2Config(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
"""Qwen2.5-7B's shape."""
LONGEST = LongestDialogue(opening=209, utterance=163, replies=9, max_tokens=256, think=False, heard=0)


def gigabytes(found: MemoryPlan) -> dict[str, float]:
    """Each part, in GB."""
    return {part.name: part.bytes / 1e9 for part in found.parts}


def of_large(longest: LongestDialogue = LONGEST, **settings: Any) -> MemoryPlan:
    """The plan for the large model on a GPU that is not here."""
    config = TrainConfig(batch=32, max_tokens=256, **settings)
    return plan_memory(config, LARGE, longest, torch.device("cuda"))


def size(tensors: Any) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.fixture(scope="module")
def deep(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six layers, so that two and three of them are not all."""
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=words.eos_token_id,
    )
    return save(words, Qwen2ForCausalLM(shape), tmp_path_factory.mktemp("deep"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True},
        {"dtype": "bfloat16"},
        {"offload_optimizer": True, "logit_tokens": 50},
        {"lora": 8},
        {"lora": 8, "dtype": "bfloat16", "gradient_checkpointing": True},
    ],
    ids=lambda settings: " ".join(settings) or "plain",
)
def test_the_plan_is_what_a_run_takes(
    deep: Path, words: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of a PPO step within a tenth, counted on the tensors that are there."""
    if "lora" in settings:
        pytest.importorskip("peft")
    config = quick(deep, "ppo", batch=4, max_tokens=40, micro_tokens=1, minibatches=1, **settings)
    model, _ = load_for_training(deep, config)
    trainer = Trainer(config, model, words, Toy(leaves=False, turns=9))
    slots: list[int] = []
    sampler = trainer.policy.engine._sampler
    clear = sampler.clear

    def spy() -> None:
        slots.append(size(tensor for pair in sampler.cache._stores.values() for tensor in pair))
        clear()

    monkeypatch.setattr(sampler, "clear", spy)
    _, dialogues = trainer.step(0)
    samples = [from_dialogue(dialogue) for dialogue in dialogues]
    length = max(map(len, samples))
    opening = min(len(records_of(dialogue)[0].prompt_ids) for dialogue in dialogues)
    met = LongestDialogue(opening, 0, 1, length - opening, False, 0)
    expected = {part.name: part.bytes for part in plan_memory(config, model.config, met, model.device).parts}

    critic, optimizers = trainer.critic, trainer.optimizers.values()
    learned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    own = {id(p) for p in learned} if config.lora else set()
    state = [
        tensor
        for optimizer in optimizers
        for slots_of in optimizer.state_dict()["state"].values()
        for name, tensor in slots_of.items()
        if name != "step"
    ]
    found = {
        "weights": size(p for p in model.parameters() if id(p) not in own),
        "critic": size(critic.parameters()) if critic else 0,
        "gradients": size(p.grad for p in learned),
        "optimizer state": size(state),
        "KV cache": max(slots),
    }
    if not config.lora:
        assert trainer.reference is not None
        found["reference"] = size(trainer.reference.model.parameters())
    for name, taken in found.items():
        assert expected[name] == pytest.approx(taken, rel=0.1), name

    # Activations: the step's longest dialogue, forwards and backwards.
    from rlver.train.batch import collate

    batch = collate([max(samples, key=len)])
    model.train()
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in learned if p.grad is not None)]
    with LiveBytes([*held, batch.ids, batch.positions]) as live:
        hidden = model.get_decoder()(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)
        hidden.last_hidden_state.backward(torch.ones_like(hidden.last_hidden_state))
    assert expected["activations"] == pytest.approx(live.peak, rel=0.1)


def test_no_dialogue_is_longer_than_the_longest(base: Path, words: Any) -> None:
    """And none that takes all its tokens is much shorter."""
    config = quick(base, batch=16, max_tokens=10, temperature=3.0)
    user = EmbeddedUser("en", "vanilla", "train")
    bound = longest_dialogue(config, words, user, None)
    model, _ = load_for_training(base, config)
    trainer = Trainer(config, model, words, user)
    _, dialogues = trainer.step(0)
    lengths = [len(from_dialogue(dialogue)) for dialogue in dialogues]
    assert max(lengths) <= bound.sample <= 3 * max(lengths)
    thinking = replace(bound, think=True)
    assert thinking.context == bound.context and thinking.sample == bound.sample + 8 * 10


def test_seven_billion_parameters_with_adapters() -> None:
    """By hand: 7,615,616,512 weights; rank x (inputs + outputs) of seven layers of 28 blocks is 80,740,352."""
    pytest.importorskip("peft")
    found = of_large(lora=32, gradient_checkpointing=True)
    parts = gigabytes(found)
    assert parts["weights"] == pytest.approx(2 * 7.615616512)
    adapters = 32 * 28 * (2 * 7168 + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    assert parts["adapters"] == parts["gradients"] == pytest.approx(4 * adapters / 1e9)
    assert parts["optimizer state"] == pytest.approx(8 * adapters / 1e9)
    assert parts["KV cache"] == pytest.approx(32 * 3840 * 28 * 2 * 4 * 128 * 2 / 1e9)
    assert "reference" not in parts and "critic" not in parts
    assert found.peak / 1e9 == pytest.approx(27.2, abs=1)
    assert of_large(lora=32).peak > found.peak + 30 * 10**9
    four = of_large(lora=32, gradient_checkpointing=True, quantize="4bit", device_memory_gb=24)
    assert gigabytes(four)["weights"] == pytest.approx(5.55, abs=0.05) and four.fits
    assert gigabytes(four)["largest layer, dequantized"] == pytest.approx(2 * 3584 * 18_944 / 1e9)
    ppo = gigabytes(of_large(lora=32, gradient_checkpointing=True, algo="ppo"))
    assert ppo["critic"] == pytest.approx(ppo["adapters"], rel=1e-3)


def test_seven_billion_parameters_in_full() -> None:
    found = of_large(gradient_checkpointing=True)
    parts = gigabytes(found)
    weights = 2 * 7.615616512
    assert parts["reference"] == parts["gradients"] == parts["weights"] == pytest.approx(weights)
    assert parts["optimizer state"] == pytest.approx(6 * weights)
    less = of_large(gradient_checkpointing=True, offload_optimizer=True, kl=0.0, device_memory_gb=80)
    assert less.fits and less.peak / 1e9 == pytest.approx(40.9, abs=1) and less.host / 1e9 == pytest.approx(6 * weights)
    assert "reference" not in gigabytes(less)


def test_advice_makes_it_fit() -> None:
    pytest.importorskip("peft")
    found = of_large(lora=32, device_memory_gb=24)
    assert found.fits is False and found.advice[0] == "gradient_checkpointing=true"
    settings = dict(setting.split("=") for setting in found.advice)
    taken = {
        key: int(value) if value.isdigit() else {"true": True}.get(value, value) for key, value in settings.items()
    }
    advised = of_large(**{"lora": 32, "device_memory_gb": 24} | taken)
    assert advised.fits and advised.peak == found.advised_peak
    assert of_large(lora=32, device_memory_gb=1).advised_peak > 10**9


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = tmp_path / "profiles.jsonl"
    write_profiles(profiles, generate("en", "validation", 3))
    (tmp_path / "shape").mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":  # weights are not needed
            (tmp_path / "shape" / file.name).write_bytes(file.read_bytes())
    arguments = ["train", "--policy", str(tmp_path / "shape"), "--profiles", str(profiles), "--dry-run"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Longest dialogue: " in shown and "KV cache" in shown and "device_memory_gb=24" in shown
    assert main([*arguments, "--set", "device_memory_gb=24", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["device"], record["dtype"], record["fits"]) == ("cuda", "bfloat16", True)
    assert record["peak_bytes"] < 10**9 and {part["name"] for part in record["parts"]} >= {"weights", "activations"}
    assert record["longest"]["replies"] == 9 and record["longest"]["max_tokens"] == 40
    assert main([*arguments, "--set", "device_memory_gb=0.01", "--set", "dtype=float32"]) == 0
    assert "MORE than" in capsys.readouterr().out
    write_profiles(profiles, [generate("en", "train", 1)[0].model_copy(update={"intention": ChatIntention.WAIT})])
    assert main([*arguments, "--set", "user=openai:some-model"]) == 0
    assert "may be longer than those of the embedded user" in capsys.readouterr().out
    assert main(["train", "--policy", str(tmp_path / "shape"), "--dry-run", "--set", "max_tokens=400"]) == 0
    assert "exceeds the 2048 positions" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["train", "--policy", str(tmp_path), "--dry-run"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_the_tiny_policy_need_not_be_made_for_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--json"]) == 0
    parts = {part["name"]: part["bytes"] for part in json.loads(capsys.readouterr().out)["parts"]}
    assert parts["weights"] == pytest.approx(4 * 0.72e6, rel=0.1) and not list(tmp_path.iterdir())
