"""Whole runs with their files: what they write, and that killed, stopped and resumed ones end alike."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import (
    ROOT,
    algos,
    lines,
    quick,
    same,
    weights_of,
)
from transformers import AutoModelForCausalLM

import rlver.train.runs.training_run as run_module
from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.core.files import LOCK
from rlver.core.transcript import Transcript
from rlver.formats.profile_files import write_profiles
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig
from rlver.train.runs.interrupt import Interrupted
from rlver.train.runs.training_run import run


@algos
def test_a_run_writes_what_it_promises(base: Path, whole: dict[str, Path], algo: str) -> None:
    folder = whole[algo]
    records = lines(folder)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    promised = {
        "reward", "entropy", "kl", "clip_fraction", "logprob_gap", "tokens_per_reply", "repeated_replies",
        "explained_variance" if algo == "ppo" else "zero_variance_groups",
    }  # fmt: skip
    for record in records:
        assert promised <= set(record)
        scores = [value for name, value in record.items() if name.startswith("score/")]
        assert scores and all(0 <= score <= 100 for score in scores)
        assert 0 <= record["reward"] <= 1 and 0 < record["tokens_per_reply"] <= 6
        assert record["entropy"] > 0 and record["kl"] >= 0 and record["logprob_gap"] < 1e-4
        assert 0 <= record["clip_fraction"] <= 1 and 0 <= record["repeated_replies"] <= 1
    assert "value_loss" in records[0] if algo == "ppo" else "value_loss" not in records[0]
    assert {*records[0]} - {"step"} >= {name for name in records[1] if not name.startswith("score/")} - {"step"}

    samples = lines(folder, "samples.jsonl")
    assert {sample.pop("step") for sample in samples} == {4}
    assert [Transcript.model_validate(sample).policy for sample in samples] == ["step-4"] * len(samples)
    assert [record["step"] for record in lines(folder, "timing.jsonl")] == [1, 2, 3, 4]
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert TrainConfig.model_validate(facts["config"]) == quick(base, algo)
    assert facts["user"].startswith("embedded/vanilla/en/train@") and set(facts["versions"]) >= {"torch", "rlver"}

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, local_files_only=True)

    start, trained = weights_of(load(folder / "base")), weights_of(load(folder / "policy"))
    assert torch.equal(start, weights_of(load(base))) and not torch.equal(start, trained)
    assert torch.equal(trained, weights_of(load(folder / "checkpoints" / "step-000004" / "policy")))
    note = json.loads((folder / "policy" / "rlver.json").read_text(encoding="utf-8"))
    assert (note["think"], note["language"], note["max_tokens"], note["algo"]) == (False, "en", 6, algo)
    # Weights are in safetensors alone: no other file but text and TensorBoard's.
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors" and path.parent.name != "tensorboard" and path.name != LOCK:
            assert path.suffix in {".json", ".jsonl", ".jinja", ".txt"}
            path.read_text(encoding="utf-8")


@algos
def test_the_same_command_gives_the_same_bytes(base: Path, whole: dict[str, Path], tmp_path: Path, algo: str) -> None:
    run(quick(base, algo), base, tmp_path / "again")
    assert same(tmp_path / "again", whole[algo])
    run(quick(base, algo, seed=1, steps=1), base, tmp_path / "other")
    assert lines(tmp_path / "other")[0] != lines(whole[algo])[0]


def test_a_thinking_run_in_chinese_with_guarded_users_repeats_too(thinker: Path, tmp_path: Path) -> None:
    config = quick(thinker, think=True, user_type="challenging", language="zh", steps=2, epochs=2, max_tokens=14)
    for name in ("one", "two"):
        run(config, thinker, tmp_path / name)
    assert same(tmp_path / "one", tmp_path / "two")
    transcripts = lines(tmp_path / "one", "samples.jsonl")
    assert any(turn["thought"] and turn["reply"] for transcript in transcripts for turn in transcript["turns"])
    assert all(transcript["think"] and transcript["language"] == "zh" for transcript in transcripts)


@algos
def test_a_run_can_break_anywhere_and_go_on(
    base: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    """A crash before a checkpoint, in the middle of writing one, and with half a line of metrics written."""
    config = quick(base, algo)

    class Crash(Exception):
        pass

    def crash_at(step: int) -> Callable[[int, dict[str, float]], None]:
        def on_step(number: int, _: dict[str, float]) -> None:
            if number == step:
                raise Crash

        return on_step

    with pytest.raises(Crash):
        run(config, base, tmp_path, on_step=crash_at(1))
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    with pytest.raises(Crash):
        run(config, base, tmp_path, resume=True, on_step=crash_at(3))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "rew')

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rlver.train.runs.checkpoint.save_file", full)
        with pytest.raises(RlverError, match=r"No space left on device.*--resume"):
            run(config, base, tmp_path, resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000002"]
    run(config, base, tmp_path, resume=True)
    assert same(tmp_path, whole[algo])
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-000002", "step-000004"]
    # A finished run that is resumed stays as it is.
    run(config, base, tmp_path, resume=True)
    assert same(tmp_path, whole[algo])


def test_learning_rates_rise_and_fall_and_survive_a_break(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    config = quick(base, warmup=1, final_rate=0.25, steps=5)
    assert [config.learning_rate_factor(step) for step in range(5)] == pytest.approx([0.5, 1.0, 0.8125, 0.625, 0.4375])
    assert quick(base, warmup=0, steps=3).learning_rate_factor(2) == 1.0

    class Crash(Exception):
        pass

    def crash(number: int, _: dict[str, float]) -> None:
        if number == 3:
            raise Crash

    config = quick(base, warmup=0, final_rate=0.1)
    with pytest.raises(Crash):
        run(config, base, tmp_path / "broken", on_step=crash)
    run(config, base, tmp_path / "broken", resume=True)
    run(config, base, tmp_path / "unbroken")
    assert same(tmp_path / "broken", tmp_path / "unbroken")
    assert not same(tmp_path / "broken", whole["grpo"])


def test_a_run_can_be_made_longer(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    run(quick(base, steps=2), base, tmp_path)
    run(quick(base, steps=4), base, tmp_path, resume=True)
    assert same(tmp_path, whole["grpo"], ("metrics.jsonl",))


@pytest.fixture
def start_training(base: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the command with the settings of `quick` and returns its process once two steps are done."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes: list[subprocess.Popen[str]] = []

    def start(algo: str) -> subprocess.Popen[str]:
        config = quick(base, algo, steps=40)
        command = [sys.executable, "-m", "rlver", "train", "--out", str(tmp_path / "run")]
        command += [
            part
            for key, value in config.model_dump(exclude_defaults=True).items()
            for part in ("--set", f"{key}={value}")
        ]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def go_on(base: Path, whole: dict[str, Path], folder: Path, algo: str) -> None:
    """Resume a stopped run; it ends as an uninterrupted one does, as far as both go."""
    done = len(lines(folder))
    steps = max(4, done + 1)
    run(quick(base, algo, steps=steps), base, folder, resume=True)
    if steps == 4:
        assert same(folder, whole[algo])
        return
    again = folder.with_name("again")
    run(quick(base, algo, steps=steps), base, again)
    assert same(folder, again)


@algos
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    start_training: Callable[[str], subprocess.Popen[str]],
    base: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    algo: str,
) -> None:
    process = start_training(algo)
    time.sleep(0.15 * random.random())
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    go_on(base, whole, tmp_path / "run", algo)


def test_ctrl_c_saves(
    start_training: Callable[[str], subprocess.Popen[str]], base: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    process = start_training("ppo")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    done = len(lines(tmp_path / "run"))
    assert f"stopped after step {done}; state saved in" in said and "--resume" in said
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()
    go_on(base, whole, tmp_path / "run", "ppo")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_any_moment_of_a_step_saves_it(
    base: Path, whole: dict[str, Path], tmp_path: Path, kind: signal.Signals
) -> None:
    """The signal comes while the progress is shown, after the place where checkpoints are due."""

    def interrupt(number: int, _: dict[str, float]) -> None:
        if number == 1:
            signal.raise_signal(kind)

    before = signal.getsignal(kind)
    with pytest.raises(Interrupted) as stop:
        run(quick(base), base, tmp_path, on_step=interrupt)
    done = len(lines(tmp_path))
    assert f"stopped after step {done};" in str(stop.value)
    assert signal.getsignal(kind) is before
    assert (tmp_path / "checkpoints" / f"step-{done:06d}").is_dir()
    run(quick(base), base, tmp_path, resume=True)
    assert same(tmp_path, whole["grpo"])


def test_the_command_trains_and_goes_on(
    base: Path, whole: dict[str, Path], half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = tmp_path / "profiles.jsonl"
    write_profiles(profiles, generate("en", "validation", 3))
    file = tmp_path / "config.yaml"
    file.write_text("steps: 1\nbatch: 2\ngroup: 2\nmax_tokens: 4\nlr: 1e-4\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["train", "--policy", str(base), "--config", str(file), "--set", "lr=2e-4", "--seed", "7"]
    assert main([*arguments, "--profiles", str(profiles), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"] == str(out / "policy") and Path(result["policy"]).is_dir()
    stored = TrainConfig.model_validate(json.loads((out / "config.json").read_text(encoding="utf-8"))["config"])
    assert (stored.steps, stored.lr, stored.seed, stored.profiles) == (1, 2e-4, 7, str(profiles))
    assert {sample["profile"].split("-")[1] for sample in lines(out, "samples.jsonl")} == {"validation"}
    # Resuming needs no more than the folder.
    assert main(["train", "--resume", "--out", str(half)]) == 0
    assert same(half, whole["ppo"])


def test_timing_is_kept_out_of_the_metrics(whole: dict[str, Path]) -> None:
    """What differs from run to run may not stand among what must not."""
    for folder in whole.values():
        assert not any("second" in name for record in lines(folder) for name in record)
        timing = lines(folder, "timing.jsonl")
        for record in timing:
            phases = [record[f"{phase}_seconds"] for phase in ("rollout", "reference", "update")]
            assert min(phases) > 0 and sum(phases) == pytest.approx(record["seconds"], rel=0.3)
            assert sum(phases) <= record["seconds"]
        steps = [record["step"] for record in timing]
        assert all(after == before + 1 for before, after in pairwise(steps))
    assert run_module.__doc__ and "timing.jsonl" in run_module.__doc__
