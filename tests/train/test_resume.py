"""Runs that are killed at the worst moments, and full disks: nothing is lost, and the results are the same."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import fresh, lines, quick, same, save, weights_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import rlver.train.runs.checkpoint as checkpoint_module
import rlver.train.runs.run_folder as files_module
import rlver.train.runs.training_run as run_module
import rlver.train.runs.validation as evaluation_module
from rlver.core.errors import RlverError
from rlver.inference import cores
from rlver.train.config import TrainConfig
from rlver.train.runs.checkpoint import Checkpoints, load_weights
from rlver.train.runs.run_folder import truncate
from rlver.train.runs.training_run import run
from rlver.train.trainer import Trainer


def watched(base: Path, **values: Any) -> TrainConfig:
    """A run with everything switched on."""
    return quick(base, **{"save_every": 1, "keep_last": 1, "eval_every": 2, "eval_n": 2, "sample_every": 1} | values)


@pytest.fixture(scope="module")
def unbroken(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a break."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(watched(base), base, folder)
    return folder


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies(
    function: Callable[..., Any], at: Callable[..., bool], last_words: Callable[..., Any] = die
) -> Callable[..., Any]:
    """The function, but the call with such arguments is the end of the process."""

    def call(*arguments: Any, **named: Any) -> Any:
        return (last_words if at(*arguments) else function)(*arguments, **named)

    return call


def second() -> Callable[..., bool]:
    """True at the second call."""
    calls: list[None] = []
    return lambda *_: calls.append(None) or len(calls) == 2


def half_a_line(file: Path, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False).encode()
    with file.open("ab") as out:
        out.write(line[: len(line) // 2])
    die()


def half_gone(folder: Path, **_: Any) -> None:
    next(path for path in folder.rglob("*") if path.is_file()).unlink()
    die()


def killed(config: TrainConfig, base: Path, folder: Path, resume: bool, module: Any, name: str, dead: Any) -> None:
    """Run in a process of its own that is killed on the way."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        cores._AVAILABLE = 1  # the threads of OpenMP do not survive a fork; on one core numbers are the same
        setattr(module, name, dead)
        try:
            run(config, base, folder, resume=resume)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


WRITE, REPLACE, REMOVE = checkpoint_module.write_policy, os.replace, shutil.rmtree
DEATHS: dict[str, tuple[Any, str, Any]] = {
    "starting policy": (checkpoint_module, "write_policy", dies(WRITE, lambda folder, *_: folder.name == ".part-base")),
    "checkpoint": (checkpoint_module, "save_file", dies(checkpoint_module.save_file, second())),
    "checkpoint's name": (files_module.os, "replace", dies(REPLACE, lambda part, _: part.name == ".part-step-000003")),
    "pruning": (shutil, "rmtree", dies(REMOVE, lambda path, *_: "old-step" in path.name and path.exists(), half_gone)),
    "evaluation": (evaluation_module, "summarise", dies(evaluation_module.summarise, second())),
    "best": (checkpoint_module, "write_policy", dies(WRITE, lambda folder, *_: folder.name == ".part-best")),
    "metrics": (run_module, "append", dies(run_module.append, lambda _, record: record["step"] == 3, half_a_line)),
    "result": (checkpoint_module, "write_policy", dies(WRITE, lambda folder, *_: folder.name == ".part-policy")),
}


@pytest.mark.parametrize("where", DEATHS)
def test_a_kill_changes_nothing(base: Path, unbroken: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    killed(watched(base), base, folder, False, *DEATHS[where])
    run(watched(base), base, folder, resume=True)
    assert same(folder, unbroken)
    for name in ("best/model.safetensors", "outcome.json", "best/rlver.json", "policy/rlver.json"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [
        path.name for path in (unbroken / "checkpoints").iterdir()
    ]
    assert not list(folder.rglob(".part-*"))


def test_a_kill_while_resuming_loses_no_line(base: Path, unbroken: Path, tmp_path: Path) -> None:
    """A truncated file is replaced as a whole."""
    folder = tmp_path / "run"
    killed(watched(base), base, folder, False, *DEATHS["metrics"])
    killed(watched(base), base, folder, True, Path, "replace", dies(Path.replace, lambda _, to: to.suffix == ".jsonl"))
    run(watched(base), base, folder, resume=True)
    assert same(folder, unbroken)


def test_a_line_may_break_inside_a_character(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    whole = '{"step": 1, "reply": "慢慢说"}\n'.encode()
    file.write_bytes(whole + whole.replace(b"1", b"2")[:-5])
    truncate(file, 1)
    assert file.read_bytes() == whole


def test_a_full_disk_is_reported_and_costs_no_checkpoint(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """Files of more than 30 kB cannot be written from the third step on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number: int, _: dict[str, float]) -> None:
        if number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))

    try:
        with pytest.raises(RlverError) as error:
            run(quick(base), base, tmp_path, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sentence = str(error.value)
    assert "step-000004" in sentence and "cannot be written" in sentence and "--resume" in sentence
    assert "\n" not in sentence
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    run(quick(base), base, tmp_path, resume=True)
    assert same(tmp_path, whole["grpo"])


class Crash(Exception):
    """Ends a run."""


def crash_at(step: int) -> Callable[[int, dict[str, float]], None]:
    """A callback that ends a run after a step."""

    def on_step(number: int, _: dict[str, float]) -> None:
        if number == step:
            raise Crash

    return on_step


def broken_and_unbroken(config: TrainConfig, base: Path, folder: Path) -> tuple[Path, Path]:
    """The run broken off after its third step and resumed, and the run without a break."""
    with pytest.raises(Crash):
        run(config, base, folder / "broken", on_step=crash_at(3))
    run(config, base, folder / "broken", resume=True)
    run(config, base, folder / "unbroken")
    return folder / "broken", folder / "unbroken"


def test_dropout_is_drawn_alike(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = fresh(words)
    model.config.attention_dropout = 0.3
    base = save(words, model, tmp_path / "base")
    broken, unbroken = broken_and_unbroken(quick(base), base, tmp_path)
    assert same(broken, unbroken)
    model.config.attention_dropout = 0.0
    run(quick(base), save(words, model, tmp_path / "plain"), tmp_path / "without")
    assert lines(tmp_path / "without")[0]["entropy"] != lines(unbroken)[0]["entropy"]


def test_state_is_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best evaluation, the windows of the watch, and whatever the curriculum wants."""

    class Curriculum:
        def __init__(self, inner: Any) -> None:
            self.inner, self.seen = inner, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def state_dict(self) -> dict[str, int]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    class Counting(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.curriculum: Any = Curriculum(getattr(self, "curriculum", None))

        def step(self, step: int) -> Any:
            self.curriculum.seen += 1
            return super().step(step)

    monkeypatch.setattr(run_module, "Trainer", Counting)
    config = quick(base, eval_every=1, eval_n=2, collapse_window=3)
    states = [
        json.loads((folder / "checkpoints" / "step-000004" / "state.json").read_text(encoding="utf-8"))
        for folder in broken_and_unbroken(config, base, tmp_path)
    ]
    assert states[0] == states[1]
    assert states[0]["curriculum"] == {"seen": 4}
    assert states[0]["collapse"]["step"] == 4 and len(states[0]["collapse"]["rewards"]) == 3
    assert states[0]["best"]["step"] >= 1 and states[0]["best"]["last_step"] == 4


def test_a_run_from_before_state_json_existed_is_resumed(base: Path, whole: dict[str, Path], half: Path) -> None:
    (half / "checkpoints" / "step-000002" / "state.json").write_text('{"step": 2}\n', encoding="utf-8")
    file = half / "config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    del facts["config"]["keep_last"], facts["config"]["eval_every"]
    file.write_text(json.dumps(facts), encoding="utf-8")
    run(quick(base, "ppo"), base, half, resume=True)
    assert same(half, whole["ppo"])


def test_what_a_run_leaves_behind_may_change_on_the_way(base: Path, whole: dict[str, Path], half: Path) -> None:
    config = quick(base, "ppo", save_every=1, keep_last=3, sample_every=1, stop_on_collapse=False)
    run(config, base, half, resume=True)
    assert same(half, whole["ppo"], ("metrics.jsonl",))
    assert len(list((half / "checkpoints").iterdir())) == 3
    assert {line["step"] for line in lines(half, "samples.jsonl")} == {3, 4}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(base: Path, tmp_path: Path, keep: int) -> None:
    run(quick(base, save_every=1, keep_last=keep), base, tmp_path)
    with_heir = {1: [1, 4], 2: [1, 3, 4], 3: [1, 2, 3, 4]}
    assert steps_in(tmp_path) == with_heir[keep]
    run(quick(base, save_every=1, keep_last=keep, stop_on_collapse=False, steps=5), base, tmp_path, resume=True)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5][-keep:]


def test_there_is_always_a_checkpoint_from_before_the_window(tmp_path: Path) -> None:
    checkpoints, recent = Checkpoints(tmp_path), 6
    for step in range(1, 60):
        checkpoints.path(step).mkdir()
        checkpoints.prune(2, recent)
        kept = sorted(int(path.name[5:]) for path in tmp_path.iterdir())
        assert kept[-2:] == [max(1, step - 1), step] if step > 1 else [1]
        assert len(kept) <= 4
        assert step <= recent or step - 2 * recent - 1 <= kept[0] <= step - recent


def steps_in(folder: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").iterdir())


def test_weights_in_several_files_are_restored(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = fresh(words, seed=1)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    other = fresh(words, seed=2)
    load_weights(other, tmp_path)
    assert torch.equal(weights_of(other), weights_of(model))
    AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
