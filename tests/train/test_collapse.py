"""Collapse: rules that no healthy run breaks, and the files that a collapsed run leaves."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Any

import pytest
from toys import lines, quick

from rlver.cli.main import main
from rlver.train.config import TrainConfig
from rlver.train.runs.collapse import Collapse, Collapsed, CollapseWatch
from rlver.train.runs.outcome import read_outcome
from rlver.train.runs.run_folder import read_json
from rlver.train.runs.training_run import run
from rlver.train.runs.validation import Evaluator
from rlver.train.trainer import Trainer

SOUND = {"entropy": 0.3, "kl": 0.2, "repeated_replies": 0.02, "bad_format": 0.1, "reward": 0.5, "loss": 0.0}


def watch(records: Iterable[dict[str, float]], **settings: Any) -> tuple[int, Collapse | None]:
    """The step at which a run with these metrics is stopped, and why; (0, None) if it is not."""
    follower = CollapseWatch(TrainConfig(**settings))
    for step, record in enumerate(records, 1):
        if verdict := follower.observe(SOUND | record):
            return step, verdict
    return 0, None


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"entropy": 0.02}, "entropy fell from 0.3 to 0.02 nats a token at step 15"),
        ({"kl": 2.5}, "kl rose from 0.2 to 2.5 nats a token at step 15"),
        ({"repeated_replies": 0.6}, "repeated_replies rose from 0.02 to 0.6 of the replies at step 15"),
        ({"bad_format": 0.95}, "bad_format rose from 0.1 to 0.95 of the dialogues at step 15"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_limit_must_be_broken_for_a_whole_window(bad: dict[str, float], expected: str) -> None:
    step, verdict = watch([{}] * 10 + [bad] * 9)
    assert step == 15 and verdict is not None and verdict.sentence.startswith(expected)
    # The weights after step 9 played step 10, which was sound; those after step 10 played step 11.
    assert verdict.healthy == 9
    assert watch([{}] * 10 + [bad] * 4 + [{}] + [bad] * 4) == (0, None)
    assert watch([{}] * 10 + [bad] * 2, collapse_window=2)[0] == 12
    # What is so from the start is no collapse, but for the entropy, which has nothing else to be measured by.
    assert watch([bad] * 40) == (0, None)


@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        ({"collapse_entropy": 0.5}, {"entropy": 0.14}),
        ({"collapse_kl": 0.5}, {"kl": 0.6}),
        ({"collapse_repeated": 0.2}, {"repeated_replies": 0.3}),
        ({"collapse_bad_format": 0.4}, {"bad_format": 0.5}),
        ({"collapse_reward": 0.9, "collapse_patience": 2}, {"reward": 0.3}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_limits_can_be_set(setting: dict[str, Any], bad: dict[str, float]) -> None:
    assert watch([{}] * 10 + [bad] * 12) == (0, None)
    assert watch([{}] * 10 + [bad] * 12, **setting)[0] > 10


def test_a_collapse_in_the_first_steps_is_seen() -> None:
    step, verdict = watch([{}] + [{"entropy": 0.001}] * 9)
    assert step == 6 and verdict is not None and verdict.healthy == 0


def test_a_reward_that_stays_low_is_a_collapse() -> None:
    high, low = [{"reward": 0.8}] * 10, [{"reward": 0.1}] * 40
    step, verdict = watch(high + low)
    # The mean over five steps is under half of 0.8 from the third low step on, and twenty of those count.
    assert step == 10 + 2 + 20 and verdict is not None
    assert "reward fell from 0.8 to 0.1 (means over 5 steps)" in verdict.sentence
    assert verdict.healthy <= 10
    assert watch(high + low[:10] + high + low[:10]) == (0, None)
    assert watch([{"reward": 0.09}] * 10 + [{"reward": 0.01}] * 40) == (0, None), "almost nothing is lost"
    follower = CollapseWatch(TrainConfig(), reward=False)
    assert not any(follower.observe(SOUND | record) for record in high + low), "with a curriculum it may fall"


@pytest.mark.parametrize("name", ["loss", "kl", "entropy", "grad_norm"])
def test_a_metric_that_is_not_finite_counts_at_once(name: str) -> None:
    step, verdict = watch([{}] * 6 + [{name: nan}])
    assert step == 7 and verdict is not None and verdict.healthy == 5
    assert verdict.sentence == f"{name} became nan at step 7"


def test_noise_and_learning_are_no_collapse() -> None:
    """Two hundred steps of a run that learns, three times as noisy as ours, with spikes."""
    rng = random.Random(0)
    records = [
        {
            "entropy": 0.3 * (1 - 0.003 * step) * rng.uniform(0.5, 1.5),
            "kl": 1e3 if rng.random() < 0.1 else 0.005 * step * rng.uniform(0.2, 1.8),
            "repeated_replies": rng.uniform(0, 0.3),
            "bad_format": rng.uniform(0, 0.8),
            "reward": min(1.0, 0.1 + 0.01 * step) * rng.uniform(0.4, 1),
        }
        for step in range(200)
    ]
    assert watch(records) == (0, None)


def test_a_watch_goes_on_from_its_state() -> None:
    records = [{}] * 8 + [{"kl": 3.0}] * 9
    straight, broken = CollapseWatch(TrainConfig()), CollapseWatch(TrainConfig())
    for record in records[:11]:
        straight.observe(SOUND | record)
        broken.observe(SOUND | record)
    resumed = CollapseWatch(TrainConfig())
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert [straight.observe(SOUND | r) for r in records[11:]] == [resumed.observe(SOUND | r) for r in records[11:]]
    assert resumed.collapse
    state = json.loads(json.dumps(resumed.state_dict()))
    for limit, still in ((2.0, True), (9.0, False)):  # other limits, another chance
        again = CollapseWatch(TrainConfig(collapse_kl=limit))
        again.load_state_dict(state)
        assert bool(again.collapse) is still


@pytest.fixture
def ill(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fifth step on every reply is one that was given before."""
    step = Trainer.step

    def repeats(self: Trainer, number: int) -> Any:
        metrics, dialogues = step(self, number)
        return metrics | {"repeated_replies": 1.0 if number >= 4 else 0.0}, dialogues

    monkeypatch.setattr(Trainer, "step", repeats)


def collapsing(base: Path, **values: Any) -> TrainConfig:
    return quick(base, **{"steps": 9, "save_every": 1, "keep_last": 1, "collapse_window": 2} | values)


@pytest.mark.usefixtures("ill")
def test_a_collapsed_run_keeps_the_last_sound_policy(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Collapsed) as stop:
        run(collapsing(base), base, tmp_path)
    sentence = str(stop.value)
    assert "repeated_replies rose from 0 to 1 of the replies at step 6" in sentence and "\n" not in sentence
    assert "lower lr (now 0.005)" in sentence and "higher kl (now 0.05)" in sentence
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved[-1] == "step-000006", "the state is saved"
    # Step 4 was sound, so the weights after step 3 were; an older one may stand for them.
    step = read_json(tmp_path / "policy" / "rlver.json")["step"]
    assert step <= 3 and f"checkpoints/step-{step:06d}" in sentence
    source = tmp_path / "checkpoints" / f"step-{step:06d}" / "policy" / "model.safetensors"
    assert (tmp_path / "policy" / "model.safetensors").read_bytes() == source.read_bytes()
    outcome = read_outcome(tmp_path)
    assert outcome.source == f"checkpoints/step-{step:06d}/policy" and "repeated_replies" in outcome.collapse
    # Resumed, it says the same at once and does no step, unless it is told to go on.
    with pytest.raises(Collapsed, match="at step 6"):
        run(collapsing(base), base, tmp_path, resume=True)
    assert len(lines(tmp_path)) == 6
    run(collapsing(base, stop_on_collapse=False), base, tmp_path, resume=True)
    assert len(lines(tmp_path)) == 9 and read_json(tmp_path / "policy" / "rlver.json")["step"] == 9


@pytest.mark.usefixtures("ill")
def test_a_collapsed_run_ends_with_its_best_policy_or_its_base(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Collapsed, match=r"policy/ is that of base \(nothing was saved before it\)"):
        run(collapsing(base, save_every=8), base, tmp_path / "early")
    assert (tmp_path / "early" / "policy" / "model.safetensors").read_bytes() == (
        tmp_path / "early" / "base" / "model.safetensors"
    ).read_bytes()
    scores = iter((40.0, 60.0, 50.0))
    names = ("score", "low", "high")
    monkeypatch.setattr(Evaluator, "run", lambda *_: dict.fromkeys((f"eval/vanilla/{n}" for n in names), next(scores)))
    with pytest.raises(Collapsed, match=r"policy/ is that of best \(step 4, held-out score 60"):
        run(collapsing(base, eval_every=2), base, tmp_path / "best")
    assert read_json(tmp_path / "best" / "policy" / "rlver.json")["step"] == 4


@pytest.mark.usefixtures("ill")
def test_stopping_can_be_switched_off(base: Path, tmp_path: Path) -> None:
    run(collapsing(base, stop_on_collapse=False), base, tmp_path)
    assert len(lines(tmp_path)) == 9 and read_outcome(tmp_path).collapse == ""


def test_the_command_says_so_and_ends_with_3(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one: at a rate a thousand times too high the policy leaves where it came from."""
    values = {"lr": 1.0, "batch": 4, "group": 2, "max_tokens": 6, "warmup": 0, "collapse_window": 2, "threads": 1}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    command = ["train", "--policy", str(base), "--out", str(tmp_path), "--steps", "12", "--seed", "1", *settings]
    assert main(command) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("The policy collapsed: ") and "policy/ is that of base" in said and "--resume" in said
    assert len(lines(tmp_path)) < 12
