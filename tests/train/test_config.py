"""The configuration: what is derived, what is rejected and how, and where files are looked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
from toys import Toy, lines, quick

from rlver.core.emotion import PRESETS, Preset
from rlver.core.errors import RlverError
from rlver.formats.profile_files import write_profiles
from rlver.stories.generate import generate
from rlver.train.config import SettingError, TrainConfig, load_config
from rlver.train.runs.run_folder import check_folder, stored_config
from rlver.train.runs.training_run import run

MINE = Preset(name="mine", start=50, clamp=inf, floor=0, fails_below=10, ends_at_success=True, replies=3)


@pytest.mark.parametrize(
    ("settings", "derived"),
    [
        ({"think": True}, {"max_tokens": 80}),
        ({"think": True, "max_tokens": 9}, {"max_tokens": 9}),
        ({"algo": "dr-grpo"}, {"weighting": "constant"}),
        ({"algo": "dr-grpo", "weighting": "token"}, {"weighting": "token"}),
        ({"engine": "vllm@http://localhost:8000"}, {"importance_cap": 2.0}),
        ({"engine": "vllm@http://localhost:8000", "importance_cap": None}, {"importance_cap": None}),
        ({"algo": "gae"}, {"algo": "ppo", "rollouts": 1}),
        ({"user": "challenging"}, {"user": "embedded", "user_type": "challenging"}),
        ({"trackers": "mlflow"}, {"trackers": ("mlflow",)}),
        ({"preset": PRESETS["paper"]}, {"preset": "paper", "rules": PRESETS["paper"]}),
        ({"preset": MINE}, {"preset": MINE, "rules": MINE}),
    ],
    ids=str,
)
def test_python_and_the_command_line_derive_the_same(settings: dict[str, Any], derived: dict[str, Any]) -> None:
    config = TrainConfig(**settings)
    assert load_config(None, [], settings) == TrainConfig.model_validate(settings) == config
    assert {name: getattr(config, name) for name in derived} == derived


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"algo": "x"}, "algo='x' must be 'grpo', 'ppo', 'gae', 'rloo', 'reinforce++' or 'dr-grpo'."),
        ({"lr": 0}, "lr=0 must be greater than 0."),
        ({"kl_estimater": "k1"}, "unknown setting 'kl_estimater'; did you mean 'kl_estimator'?"),
        ({"simulator": "embedded"}, "unknown setting 'simulator'; it is now called 'user'."),
        ({"group": 1}, "group=1 must be at least 2: grpo compares the rollouts of a profile."),
        ({"batch": 6}, "batch=6 must be a multiple of group=4."),
        ({"trackers": ["mlflow", "x"]}, "trackers=['mlflow', 'x']: 'x' must be 'wandb', 'trackio' or 'mlflow'."),
        ({"preset": {"name": "mine"}}, "preset={'name': 'mine'}: start is missing."),
        ({"user": "vanilla", "user_type": "challenging"}, "user='vanilla' and user_type='challenging' contradict"),
        ({"user": "human"}, "user='human': training takes thousands of dialogues"),
        ({"user": "bob"}, "user='bob' must be embedded, vanilla, challenging, openai:MODEL@BASE_URL or any:"),
        ({"schedule": {0: 0.5}}, "curriculum='none' and schedule={0: 0.5} do not go together"),
        ({"algo": "ppo", "zero_variance": "skip"}, "zero_variance='skip' needs groups of rollouts"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(settings: dict[str, Any], sentence: str) -> None:
    for make in (lambda: TrainConfig(**settings), lambda: load_config(None, [], settings)):
        with pytest.raises(SettingError) as error:
            make()
        assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
        assert error.value.setting in {*settings, "group"}


def test_an_error_names_the_file_that_holds_the_value(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lr: fast\nuser: bob\n", encoding="utf-8")
    with pytest.raises(RlverError, match=rf"^{file}: user='bob' must be"):
        load_config(file, [], {"lr": 1e-4})
    with pytest.raises(RlverError, match=r"^lr='slow' must be"):
        load_config(file, ["lr=slow"], {"user": "vanilla"})


def test_files_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "model").mkdir(parents=True)
    file = tmp_path / "runs" / "config.yaml"
    file.write_text("profiles: data/mine.jsonl\neval_profiles: /abs.jsonl\npolicy: model\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("runs/config.yaml"), [], {})
    assert (config.profiles, config.eval_profiles) == ("runs/data/mine.jsonl", "/abs.jsonl")
    assert config.policy == "runs/model"
    # What stands elsewhere is relative to where the command runs.
    assert load_config(file, ["profiles=data/mine.jsonl"], {}).profiles == "data/mine.jsonl"
    (tmp_path / "runs" / "tiny").mkdir()
    for policy in ("tiny", "elsewhere/model"):
        file.write_text(f"policy: {policy}\n", encoding="utf-8")
        assert load_config(file, [], {}).policy == policy


def test_a_later_user_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("user: challenging\n", encoding="utf-8")
    assert load_config(file, [], {}).user_type == "challenging"
    assert load_config(file, [], {"user": "vanilla"}).user_type == "vanilla"
    assert load_config(file, ["user_type=vanilla"], {}).user_type == "vanilla"
    config = load_config(file, [], {"user": "openai:model@http://localhost:8000/v1"})
    assert (config.user, config.user_type) == ("openai:model@http://localhost:8000/v1", "challenging")


def test_every_setting_is_explained() -> None:
    assert not [name for name, field in TrainConfig.model_fields.items() if not field.description]


def test_a_run_with_a_preset_of_ones_own_is_resumed(base: Path, tmp_path: Path) -> None:
    config = quick(base, preset=MINE, steps=1)
    run(config, base, tmp_path / "run", users=Toy(leaves=False, turns=9))
    assert lines(tmp_path / "run")[0]["turns"] == 3
    stored = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert stored["preset"] == "mine" and TrainConfig.model_validate(stored["config"]) == config
    check_folder(tmp_path / "run", config, resume=True)
    with pytest.raises(RlverError, match="preset"):
        check_folder(tmp_path / "run", quick(base, steps=1), resume=True)


def test_a_run_from_before_the_user_settings_were_renamed_is_resumed(base: Path, tmp_path: Path) -> None:
    config = quick(base, steps=1, user="challenging")
    run(config, base, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["config"]["simulator"] = stored["config"].pop("user")
    stored["config"]["user"] = stored["config"].pop("user_type")
    file.write_text(json.dumps(stored), encoding="utf-8")
    assert load_config(None, [], stored_config(tmp_path / "run")) == config
    run(config.model_copy(update={"steps": 2}), base, tmp_path / "run", resume=True)


def test_profiles_of_a_file_beside_the_config_are_used(
    base: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "settings"
    folder.mkdir()
    write_profiles(folder / "zh.jsonl", generate("zh", "train", 2))
    (folder / "config.yaml").write_text("profiles: zh.jsonl\n", encoding="utf-8")
    message = fails("--policy", str(base), "--config", str(folder / "config.yaml"))
    assert str(folder / "zh.jsonl") in message and "--language" in message
