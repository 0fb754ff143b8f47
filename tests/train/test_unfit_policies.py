"""Policies that cannot be trained: they are reported before a run begins, or at the first unsupported input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from toys import fresh, save
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.inference.model_folder import load_model

Weights = dict[str, Any]


def without_a_layer(weights: Weights, config: dict[str, Any]) -> None:
    for name in [name for name in weights if "layers.1.mlp" in name]:
        del weights[name]


def one_layer_more(weights: Weights, config: dict[str, Any]) -> None:
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)


def one_layer_less(weights: Weights, config: dict[str, Any]) -> None:
    config["num_hidden_layers"] -= 1
    config.pop("layer_types", None)


def another_architecture(weights: Weights, config: dict[str, Any]) -> None:
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize("change", [without_a_layer, one_layer_more, one_layer_less, another_architecture])
def test_weights_of_another_model_are_reported(
    base: Path, tmp_path: Path, change: Callable[[Weights, dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """`transformers` would initialise missing weights at random and drop surplus ones."""
    folder = tmp_path / "unfit"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(weights, config)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RlverError, match="not the weights of the model"):
        load_model(folder)
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert str(folder) in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_of_other_parts_are_ignored(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seeing"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["vision_tower.layers.0.weight"] = next(iter(weights.values())).clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_model(folder)


def test_a_tokenizer_with_more_entries_than_the_model_is_reported(
    words: Any, tmp_path: Path, fails: Callable[..., str]
) -> None:
    model = fresh(words)
    model.resize_token_embeddings(len(words) - 10)
    folder = save(words, model, tmp_path / "small")
    assert f"{len(words)} entries" in fails("--policy", str(folder))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_are_a_limit(
    words: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    if kind == "gpt2":
        shape = GPT2Config(vocab_size=len(words), n_positions=64, n_embd=32, n_layer=2, n_head=2, **ends)
        model: Any = GPT2LMHeadModel(shape)
    else:
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=len(words),
                max_position_embeddings=64,
                hidden_size=32,
                word_embed_proj_dim=32,
                ffn_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                **ends,
            )
        )
    folder = save(words, model.eval(), tmp_path / kind)
    small = ("--policy", str(folder), "--set", "batch=4", "--set", "kl=0")
    for way in (("--out", str(tmp_path / "run")), ("--dry-run",)):
        capsys.readouterr()
        assert main(["train", *small, *way]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("Error: ") and ("64 positions" in message or (kind, way[0]) == ("opt", "--dry-run"))


def test_an_architecture_that_cannot_be_planned_is_reported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mamba"
    shutil.copytree(base, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba", "vocab_size": 400}), "utf-8")
    assert main(["train", "--policy", str(folder), "--dry-run"]) == 1
    message = capsys.readouterr().err
    assert "mamba" in message and message.count("\n") == 1


def test_a_plan_needs_no_peft_to_advise(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlver.train.plan.memory.find_spec", lambda name: None)
    monkeypatch.setattr("rlver.inference.model_folder.find_spec", lambda name: None)
    few = ("--set", "batch=4", "--set", "device_memory_gb=0.001")
    assert main(["train", "--policy", str(base), *few, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "MORE than" in shown and "lora" not in shown
