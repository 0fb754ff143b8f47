"""Wrong input to training: one clear sentence, and no file is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import (
    fresh,
    hurt,
    quick,
    save,
)

from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.core.files import locked_folder
from rlver.core.profile import ChatIntention
from rlver.formats.profile_files import write_profiles
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig, load_config
from rlver.train.runs.training_run import run


def refused(config: TrainConfig, base: Path, folder: Path, resume: bool = False) -> str:
    """The sentence with which a run is refused."""
    with pytest.raises(RlverError) as error:
        run(config, base, folder, resume=resume)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_a_folder_holds_one_run(base: Path, half: Path) -> None:
    config = quick(base, "ppo")
    before = (half / "metrics.jsonl").read_bytes()
    sentence = refused(config, base, half)
    assert str(half) in sentence and "--resume" in sentence
    for change in ({"lr": 1e-4}, {"algo": "grpo"}, {"seed": 3}, {"user_type": "challenging"}):
        sentence = refused(config.model_copy(update=change), base, half, resume=True)
        assert str(half) in sentence and next(iter(change)) in sentence and "batch" not in sentence
    assert (half / "metrics.jsonl").read_bytes() == before
    hurt(half / "config.json")
    assert "config.json" in refused(config, base, half, resume=True)


def test_a_folder_that_is_no_run_is_left_as_it_is(base: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    """A run would put its own base in the place of another, for example of all pretrained policies."""
    shared = tmp_path / "runs"
    shutil.copytree(base, shared / "base")
    (shared / ".part-other").mkdir()
    before = (shared / "base" / "model.safetensors").read_bytes()
    sentence = refused(quick(base), base, shared)
    assert str(shared) in sentence and "base" in sentence
    assert str(shared) in fails("--policy", str(shared / "base"), "--out", str(shared))
    assert (shared / "base" / "model.safetensors").read_bytes() == before and (shared / ".part-other").is_dir()
    assert "not the configuration of a run" in refused(quick(base), base, base)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    assert "metrics.jsonl" in refused(quick(base), base, tmp_path / "notes")
    (tmp_path / "new").mkdir()
    run(quick(base, steps=1), base, tmp_path / "new")


def test_only_a_run_goes_on(base: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    typo = tmp_path / "typo"
    assert "no run to continue" in refused(quick(base), base, typo, resume=True)
    assert str(typo) in fails("--out", str(typo), "--resume")
    assert not typo.exists()


def test_two_processes_do_not_write_one_run(base: Path, half: Path) -> None:
    before = (half / "metrics.jsonl").read_bytes()
    with locked_folder(half):
        sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(half) in sentence and "another process" in sentence
    assert (half / "metrics.jsonl").read_bytes() == before


def test_a_run_does_not_go_on_with_other_profiles(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "profiles.jsonl"
    write_profiles(file, generate("en", "train", 6, 1))
    config = quick(base, profiles=str(file), steps=1)
    run(config, base, tmp_path / "run")
    write_profiles(file, generate("en", "train", 6, 2))
    later = config.model_copy(update={"steps": 2})
    assert str(file) in refused(later, base, tmp_path / "run", resume=True)
    write_profiles(file, generate("en", "train", 6, 1))
    run(later, base, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "name", ["policy/model.safetensors", "critic.safetensors", "optimizer.safetensors", "state.json"]
)
def test_a_damaged_checkpoint_is_reported(base: Path, half: Path, name: str) -> None:
    checkpoint = half / "checkpoints" / "step-000002"
    hurt(checkpoint / name)
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "damaged" in sentence
    (checkpoint / name).unlink()
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "damaged" in sentence
    for state in ("{}", '{"step": 2, "best": {}}'):
        (checkpoint / "state.json").write_text(state, encoding="utf-8")
        assert str(checkpoint) in refused(quick(base, "ppo"), base, half, resume=True)


def test_a_checkpoint_of_another_model_is_reported(words: Any, base: Path, half: Path, tmp_path: Path) -> None:
    wide = save(words, fresh(words, hidden=48), tmp_path / "wide")
    run(quick(wide, "ppo", steps=1), wide, tmp_path / "other")
    checkpoint = half / "checkpoints" / "step-000002"
    shutil.rmtree(checkpoint)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-000001", checkpoint)
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "another model" in sentence


def test_unusable_policies_are_reported(fails: Callable[..., str], base: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in fails("--policy", nowhere)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails("--policy", str(tmp_path / "empty"))
    shutil.copytree(base, tmp_path / "broken")
    hurt(tmp_path / "broken" / "model.safetensors")
    assert str(tmp_path / "broken") in fails("--policy", str(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["sped=3"], "unknown setting 'sped'; did you mean 'seed'?"),
        (["qqqq=3"], "the settings are policy, threads"),
        (["lr"], "key=value"),
        (["lr=fast"], "lr='fast' must be a valid number."),
        (["lr=["], "lr"),
        (["batch=6", "group=4"], "batch=6 must be a multiple of group=4."),
        (["group=1"], "at least 2"),
        (["preset=hard"], "preset='hard' must be sage, release or paper"),
        (["lr=.inf"], "finite"),
        (["device_memory_gb=.inf"], "finite"),
        (["seed=2001-13-45"], "not a valid YAML value"),
        (["curriculum=schedule", "schedule={0: .nan}"], "finite"),
        (["curriculum=schedule", "schedule={0: 7}"], "less than or equal to 1"),
        (["curriculum=schedule", "schedule={-3: 0.5}"], "greater than or equal to 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_reported(fails: Callable[..., str], base: Path, settings: list[str], expected: str) -> None:
    assert expected in fails("--policy", str(base), *(part for setting in settings for part in ("--set", setting)))


@pytest.mark.parametrize(
    "content",
    [b"- lr\n- batch\n", b"lr", b"lr: [1", b"lr: 1\x00", b"\xff\xfelr: 1", b"1: 2\n"],
    ids=["list", "word", "unclosed", "control", "bytes", "number"],
)
def test_a_broken_config_file_is_reported(
    fails: Callable[..., str], base: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    message = fails("--policy", str(base), "--config", str(file))
    assert "bad.yaml" in message
    file.unlink()
    assert str(file) in fails("--policy", str(base), "--config", str(file))


def test_unusable_profiles_are_reported(fails: Callable[..., str], base: Path, tmp_path: Path) -> None:
    chinese = tmp_path / "zh.jsonl"
    write_profiles(chinese, generate("zh", "train", 2))
    message = fails("--policy", str(base), "--profiles", str(chinese))
    assert str(chinese) in message and "--language" in message
    chinese.unlink()
    assert str(chinese) in fails("--policy", str(base), "--profiles", str(chinese))
    chats = tmp_path / "chats.jsonl"
    chat = generate("en", "train", 1)[0].model_copy(update={"intention": ChatIntention.WAIT})
    write_profiles(chats, [chat])
    assert "chit-chat" in fails("--policy", str(base), "--profiles", str(chats))
    evaluation = ("--set", f"eval_profiles={chats}", "--set", "eval_n=1", "--eval-every", "1")
    assert "chit-chat" in fails("--policy", str(base), *evaluation)


def test_folders_that_cannot_be_resumed_are_reported(
    fails: Callable[..., str], half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "seed" in fails("--resume", "--out", str(half), "--seed", "5")
    hurt(half / "config.json")
    assert "config.json" in fails("--resume", "--out", str(half))
    assert main(["train", "--resume"]) == 1 and "--out" in capsys.readouterr().err
    assert main(["train", "--algo", "magic"]) == 2


def test_configs_are_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nseed: 1\nbatch: 16\n", encoding="utf-8")
    config = load_config(file, ["seed=3", "kl = 0"], {"seed": 2, "batch": 24})
    assert (config.lr, config.seed, config.batch, config.kl, config.algo) == (1e-3, 3, 24, 0.0, "grpo")
    assert load_config(None, ["trackers=mlflow"], {}).trackers == ("mlflow",)
    assert load_config(None, [], {"think": True}).max_tokens == 80
    assert load_config(None, ["max_tokens=9"], {"think": True}).max_tokens == 9
    assert load_config(None, ["batch=7"], {"algo": "ppo"}).rollouts == 1
    file.write_text("", encoding="utf-8")
    assert load_config(file, [], {}) == TrainConfig.model_validate({})
    wrong = {"lr": 0, "final_rate": 0, "steps": 0, "clip": -1, "temperature": 0, "algo": "x", "gamma": 2}
    for key, value in wrong.items():
        with pytest.raises(RlverError, match=key):
            load_config(None, [], {key: value})
