"""Export: a folder that loads without rlver, and a card that says no more than was measured."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import fresh, lines, quick, save, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.evaluation.results import BenchmarkResults
from rlver.policies.prompts import system_prompt
from rlver.train.runs.export import export
from rlver.train.runs.training_run import run


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(quick(base, eval_every=2, eval_n=3, seed=5), base, folder)
    return folder


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The header and the text of a model card."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("name", ["policy", "base", "best", "checkpoints/step-000002/policy"])
def test_every_policy_folder_of_a_run_is_one_for_transformers(trained: Path, name: str) -> None:
    folder = trained / name
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.chat_template and (folder / "model.safetensors").is_file()
    sampling = GenerationConfig.from_pretrained(folder)
    assert sampling.eos_token_id == tokenizer.eos_token_id and sampling.pad_token_id == tokenizer.pad_token_id
    assert (sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p) == (True, 0.7, 0, 1.0)
    assert sampling.max_new_tokens == 6
    assert loaded(folder).generation_config.temperature == 0.7


def test_a_starting_policy_with_other_habits_is_sampled_as_in_training(base: Path, words: Any, tmp_path: Path) -> None:
    """Even if its settings are such that transformers would refuse to save them."""
    folder = save(words, fresh(words), tmp_path / "base")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}), encoding="utf-8"
    )
    run(quick(folder, steps=1, temperature=0.9), folder, tmp_path / "run")
    sampling = GenerationConfig.from_pretrained(tmp_path / "run" / "policy")
    assert (sampling.do_sample, sampling.temperature, sampling.top_k) == (True, 0.9, 0)
    assert sampling.eos_token_id == [1, words.eos_token_id], "it ends where it ended, and at the closing mark"


def test_an_export_is_used_as_its_card_says(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--out", str(tmp_path / "mine")]) == 0
    assert "choose a license" in capsys.readouterr().out
    assert torch.equal(weights_of(loaded(tmp_path / "mine")), weights_of(loaded(trained / "policy")))
    _, text = card_of(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10 and system_prompt("en", False) in code
    torch.manual_seed(0)
    exec(code, {})
    assert capsys.readouterr().out.strip()
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    bench, serve = (shlex.split(line, comments=True)[1:] for line in commands.splitlines())
    assert main([*bench, "--n", "2"]) == 0
    assert serve[:3] == ["serve", "--policy", "mine"]


def test_the_card_shows_the_evaluation_of_the_run(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "mine", base_model="someone/small")
    header, text = card_of(tmp_path / "mine")
    assert header["base_model"] == "someone/small" and header["language"] == ["en"]
    assert {"rlver", "grpo"} <= set(header["tags"]) and "license" not in header
    last = lines(trained)[-1]
    score, low, high = (last[f"eval/vanilla/{name}"] for name in ("score", "low", "high"))
    assert f"| vanilla users | 3 | {score:.1f} | {low:.1f} to {high:.1f} |" in text
    assert "may have been chosen" in text and "embedded/vanilla/en/validation@" in text
    assert (
        "preset `sage`" in text and "after step 4 of 4" in text and "| lr | 0.005 |" in text and "| seed | 5 |" in text
    )
    assert "simulated" in text.lower() and "no therapist" in text


def test_the_card_shows_the_benchmark(trained: Path, tmp_path: Path) -> None:
    bench = ["bench", "--policy", str(trained / "base"), "--policy", str(trained / "policy"), "--seed", "3"]
    assert main([*bench, "--policy", "scripted:generic", "--n", "3", "--out", str(tmp_path / "bench")]) == 0
    file = tmp_path / "bench" / "results.json"
    export(trained, tmp_path / "mine", results=file)
    _, text = card_of(tmp_path / "mine")
    found = BenchmarkResults.model_validate_json(file.read_text(encoding="utf-8"))
    for name, result in zip(
        ("what it was trained from", "this policy", "scripted:generic"), found.policies, strict=True
    ):
        low, high = result.summary.ci95
        assert f"| {name} | 3 | {result.summary.score:.1f} | {low:.1f} to {high:.1f} |" in text
    assert "preset `sage`" in text and f"simulated user `{found.user}`" in text and "seed `3`" in text
    assert f"system prompt `{found.policies[1].prompt}`" in text
    for source, message in ((trained / "best", "is about"), (trained / "checkpoints" / "step-000002", "is about")):
        with pytest.raises(RlverError, match=message):
            export(source, tmp_path / "other", results=file)
    file.write_text('{"version": 1}', encoding="utf-8")
    with pytest.raises(RlverError, match=r"results\.json: must hold results"):
        export(trained, tmp_path / "other", results=file)
    assert not (tmp_path / "other").exists()


def test_the_card_leaves_out_what_was_not_measured(
    base: Path, trained: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    export(base, tmp_path / "foreign")
    export(whole["ppo"], tmp_path / "ppo")
    export(whole["ppo"] / "checkpoints" / "step-000002", tmp_path / "two")
    export(trained / "checkpoints" / "step-000002", tmp_path / "measured")
    for name in ("foreign", "ppo", "two"):
        assert "Not measured." in card_of(tmp_path / name)[1]
    assert "after step 2 of 4" in card_of(tmp_path / "two")[1]
    assert f"| vanilla users | 3 | {lines(trained)[1]['eval/vanilla/score']:.1f} |" in card_of(tmp_path / "measured")[1]
    assert "## Training" not in card_of(tmp_path / "foreign")[1]


def test_a_policy_that_thinks_says_how(thinker: Path, tmp_path: Path) -> None:
    run(quick(thinker, think=True, language="zh", steps=1, max_tokens=14), thinker, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "mine")
    header, text = card_of(tmp_path / "mine")
    assert header["language"] == ["zh"] and system_prompt("zh", True) in text and "Remove the thoughts" in text
    note = json.loads((tmp_path / "mine" / "rlver.json").read_text(encoding="utf-8"))
    assert note["think"] and note["language"] == "zh"


def test_an_export_reveals_no_path_of_the_machine(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "mine")
    for file in (tmp_path / "mine").iterdir():
        assert file.suffix in {".json", ".safetensors", ".jinja", ".md"}
        if file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert str(tmp_path.parent.parent) not in text and str(Path.home()) not in text


def test_folders_that_cannot_be_exported_are_reported(
    trained: Path, tmp_path: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["export", *arguments]) == 1
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "no such folder" in error_of(str(tmp_path / "nothing"), "--out", out)
    assert "neither a run that has ended" in error_of(str(tmp_path), "--out", out)
    for file in (half / "policy").iterdir():
        file.unlink()
    assert "step-000002" in error_of(str(half), "--out", out)
    assert "no adapter" in error_of(str(trained), "--out", out, "--format", "adapter")
    assert "choose another --out" in error_of(str(trained), "--out", str(trained))
    (tmp_path / "here").mkdir()
    with contextlib.chdir(tmp_path / "here"):
        assert "choose another --out" in error_of(str(trained), "--out", ".")
    assert "cannot be read" in error_of(str(trained), "--out", out, "--results", str(tmp_path))
    assert not Path(out).exists()


def test_rlver_json_of_any_content_is_exported_or_reported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "noted"
    shutil.copytree(base, folder)
    for note, message in (({"temperature": -1}, "temperature"), ({"max_tokens": 0}, "max_tokens")):
        (folder / "rlver.json").write_text(json.dumps(note), encoding="utf-8")
        assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    (folder / "rlver.json").write_text(json.dumps({"temperature": 0, "language": None}), encoding="utf-8")
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    model, tokenizer = loaded(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("I see.", return_tensors="pt")
    once, again = (model.generate(**inputs, max_new_tokens=5) for _ in range(2))
    assert torch.equal(once, again)


@pytest.fixture
def adapter(base: Path, trained: Path, tmp_path: Path) -> Path:
    """A LoRA policy in the place where a run keeps it, and its base beside it."""
    peft = pytest.importorskip("peft")
    model = loaded(base)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    folder = tmp_path / "lora" / "policy"
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "rlver.json").write_bytes((trained / "policy" / "rlver.json").read_bytes())
    return folder


def test_an_adapter_is_merged_or_left_as_it_is(adapter: Path, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    export(adapter, tmp_path / "merged")
    ids = torch.tensor([[5, 9, 12, 40]])
    expected = PeftModel.from_pretrained(loaded(base), str(adapter))(ids).logits
    assert torch.allclose(loaded(tmp_path / "merged")(ids).logits, expected, atol=1e-4)
    assert not torch.allclose(loaded(base)(ids).logits, expected, atol=1e-2)
    export(adapter, tmp_path / "adapter", kind="adapter", base_model="someone/small")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "someone/small"
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    header, text = card_of(tmp_path / "adapter")
    assert header["library_name"] == "peft" and "LoRA adapter" in text
    export(adapter, tmp_path / "unnamed", kind="adapter")
    assert str(base.parent) not in (tmp_path / "unnamed" / "adapter_config.json").read_text(encoding="utf-8")


def test_merging_needs_peft(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}', encoding="utf-8")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RlverError, match=r"pip install 'rlver\[lora\]', or choose --format adapter"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command, taught in (
        ("export", "rlver export runs/mine --results"),
        ("train", "--eval-every 10 --track mlflow"),
    ):
        assert main([command, "--help"]) == 0
        assert taught in capsys.readouterr().out
