"""Evaluation during a run: on validation users, with the model in place, and without influence on the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import lines, quick, same

import rlver.train.runs.validation as evaluation_module
from rlver.cli.main import main
from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.evaluation.benchmark import run_benchmark
from rlver.evaluation.statistics import estimate
from rlver.formats.profile_files import write_profiles
from rlver.policies.load import load_policy
from rlver.stories import benchmark_profiles
from rlver.stories.generate import generate
from rlver.train.runs.outcome import Outcome, read_outcome
from rlver.train.runs.participants import EVALUATION_SEED, evaluation_profiles
from rlver.train.runs.run_folder import read_json
from rlver.train.runs.training_run import run
from rlver.train.runs.validation import Best, Evaluator, Score, score_of
from rlver.users.embedded.user import EmbeddedUser

NAMES = {"score", "low", "high", "success", "failure"}


@pytest.fixture(scope="module")
def evaluated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated every third step."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    run(quick(base, eval_every=3, eval_n=4), base, folder)
    return folder


def test_evaluations_stand_among_the_metrics_and_leave_training_alone(evaluated: Path, whole: dict[str, Path]) -> None:
    records = lines(evaluated)
    held_out = [{name for name in record if name.startswith("eval/")} for record in records]
    assert held_out == [set(), set(), *2 * [{f"eval/vanilla/{name}" for name in NAMES}]]
    plain = [{name: value for name, value in record.items() if not name.startswith("eval/")} for record in records]
    assert plain == lines(whole["grpo"])
    assert same(evaluated, whole["grpo"], ("samples.jsonl",))
    assert ["evaluation_seconds" in record for record in lines(evaluated, "timing.jsonl")] == [False, False, True, True]
    for record in records[2:]:
        low, score, high = (record[f"eval/vanilla/{name}"] for name in ("low", "score", "high"))
        assert 0 <= low <= score <= high <= 100


def test_the_numbers_are_those_of_a_benchmark_of_the_policy(evaluated: Path, base: Path) -> None:
    """The benchmark of the saved policy, with the same users."""
    profiles = generate("en", "validation", 4, EVALUATION_SEED)
    user = EmbeddedUser("en", "vanilla", "validation")
    policy = load_policy(str(evaluated / "policy"), "en")
    found = estimate(run_benchmark(profiles, policy, user, get_preset("sage"), EVALUATION_SEED))
    last = {name: lines(evaluated)[-1][f"eval/vanilla/{name}"] for name in NAMES}
    assert last == {
        "score": found.score,
        "low": found.ci95[0],
        "high": found.ci95[1],
        "success": found.success,
        "failure": found.failure,
    }
    facts = read_json(evaluated / "config.json")["evaluation"]
    assert facts["users"] == {"vanilla": user.identity} and facts["n"] == 4


@pytest.mark.parametrize("language", ["en", "zh"])
def test_validation_shares_no_story_with_training_or_the_benchmark(base: Path, language: Any) -> None:
    config = quick(base, language=language, eval_n=64)
    asked = {profile.story.id for profile in evaluation_profiles(config)}
    assert len({profile.id for profile in evaluation_profiles(config)}) == 64
    assert not asked & {profile.story.id for profile in benchmark_profiles(language)}
    assert not asked & {profile.story.id for profile in generate(language, "train", 200)}
    # Other seeds ask the same people: their runs can be compared.
    assert evaluation_profiles(config.model_copy(update={"seed": 9})) == evaluation_profiles(config)


def test_both_user_types_meet_the_model_in_place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(base, user_type="challenging", eval_every=2, eval_n=3, steps=2)
    seen: list[Any] = []
    original = run_benchmark

    def spy(profiles: Any, policy: Any, user: Any, *arguments: Any, **named: Any) -> Any:
        seen.append((policy.model, policy.model.training, user.user_type, user.phrasing, len(profiles)))
        return original(profiles, policy, user, *arguments, **named)

    trained: list[Any] = []
    monkeypatch.setattr(evaluation_module, "run_benchmark", spy)
    monkeypatch.setattr(Evaluator, "run", _keeping(Evaluator.run, trained))
    notes: list[str] = []
    run(config, base, tmp_path, on_note=notes.append)
    assert [entry[1:] for entry in seen] == [
        (False, "vanilla", "validation", 3),
        (False, "challenging", "validation", 3),
    ]
    assert all(entry[0] is trained[0].model for entry in seen)
    assert {name.split("/")[1] for name in lines(tmp_path)[-1] if name.startswith("eval/")} == {
        "vanilla",
        "challenging",
    }
    assert "evaluating: vanilla 3/3" in notes and "evaluating: challenging 3/3" in notes


def _keeping(function: Any, kept: list[Any]) -> Any:
    def call(self: Evaluator, policy: Any, on_progress: Any) -> Any:
        kept.append(policy)
        return function(self, policy, on_progress)

    return call


def test_profiles_of_a_file_can_be_used_for_evaluation(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    write_profiles(file, generate("en", "validation", 3, 1))
    config = quick(base, eval_profiles=str(file), eval_n=2)
    assert evaluation_profiles(config) == generate("en", "validation", 3, 1)[:2]
    for wrong, message in (({"eval_n": 4}, "fewer than eval_n=4"), ({"language": "zh"}, "--language")):
        with pytest.raises(RlverError, match=message):
            evaluation_profiles(config.model_copy(update=wrong))


def metrics_of(score: float) -> dict[str, float]:
    return {"eval/vanilla/score": score, "eval/vanilla/low": score - 5, "eval/vanilla/high": score + 5}


def test_the_best_is_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Best("vanilla")
    assert [best.observe(step, metrics_of(score)) for step, score in enumerate((0, 30, 20, 30, 31), 1)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert not best.observe(6, {"reward": 1.0}) and (best.step, best.last_step) == (5, 5)
    assert score_of(metrics_of(50), "vanilla") == Score(50, 45, 55) and score_of(metrics_of(50), "challenging") is None

    scores = iter((40.0, 60.0, 50.0, 20.0))
    monkeypatch.setattr(Evaluator, "run", lambda *_: metrics_of(next(scores)))
    run(quick(base, eval_every=1, save_every=1, keep_last=3), base, tmp_path)
    assert read_json(tmp_path / "best" / "rlver.json")["step"] == 2
    second = tmp_path / "checkpoints" / "step-000002" / "policy" / "model.safetensors"
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == second.read_bytes()
    outcome = read_outcome(tmp_path)
    assert (outcome.best_step, outcome.best, outcome.score) == (2, Score(60, 55, 65), Score(20, 15, 25))
    assert "best/ is better (step 2, 60.0 [55.0, 65.0])" in outcome.verdict


def test_the_best_need_not_be_kept(base: Path, tmp_path: Path) -> None:
    run(quick(base, eval_every=2, eval_n=2, keep_best=False), base, tmp_path)
    assert not (tmp_path / "best").exists() and read_outcome(tmp_path).best_step


def test_the_outcome_says_which_policy_is_better() -> None:
    def verdict_of(best_step: int, best: float, last: float) -> str:
        return Outcome(
            steps=8, source="last", best_step=best_step, best=Score(best, 0, 99), score=Score(last, last - 5, last + 5)
        ).verdict

    assert verdict_of(8, 50, 50).endswith("no earlier evaluation was better.")
    assert "better, within the interval" in verdict_of(3, 54, 50)
    assert "best/ is better (step 3" in verdict_of(3, 56, 50)
    assert "step 3 scored as high" in verdict_of(3, 50, 50)
    assert Outcome(steps=8, source="last").verdict == ""
    with pytest.raises(RlverError, match="not ended"):
        read_outcome(Path("nowhere"))


def test_the_command_evaluates_and_says_which_is_better(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for setting in ("batch=4", "group=2", "max_tokens=6", "eval_n=2") for part in ("--set", setting)]
    command = ["train", "--policy", str(base), "--out", str(tmp_path), "--steps", "2", "--eval-every", "1", *settings]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "policy/ is the last (step 2, held-out score" in shown.out and "rlver export" in shown.out
    assert "held-out" in shown.err
    assert all("eval/vanilla/score" in record for record in lines(tmp_path))
