"""The Python API: what `import rlver` hands out does what the command line does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlver
from rlver.cli.main import main
from rlver.core.emotion import PRESETS


def kind(messages: list[dict[str, str]]) -> str:
    """Takes up the user's words."""
    return f"That must be hard. {messages[-1]['content'].split('.')[0]}. Tell me more."


def test_every_public_name_can_be_imported() -> None:
    for name in rlver.__all__:
        assert getattr(rlver, name) is not None
    assert set(rlver.__all__) <= set(dir(rlver))
    assert rlver.__version__
    with pytest.raises(AttributeError, match="nonsense"):
        rlver.nonsense  # noqa: B018


def test_importing_and_evaluating_load_no_torch() -> None:
    code = "import sys, rlver; rlver.evaluate('scripted:hedge', n=2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluate_gives_the_scores_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--policy", "scripted:hedge", "--n", "12", "--out", str(tmp_path / "bench"), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    evaluation = rlver.evaluate("scripted:hedge", n=12, out=tmp_path / "api")
    assert evaluation.score == printed["policies"][0]["summary"]["score"]
    assert list(evaluation.ci95) == printed["policies"][0]["summary"]["ci95"]
    logs = [(tmp_path / name / "1-scripted-hedge.jsonl").read_text(encoding="utf-8") for name in ("bench", "api")]
    dialogues = [[json.loads(line) for line in log.splitlines() if '"kind":"dialogue"' in line] for log in logs]
    assert [d["transcript"] for d in dialogues[0]] == [d["transcript"] for d in dialogues[1]]


def test_functions_are_policies_sync_or_async() -> None:
    async def later(messages: list[dict[str, str]]) -> str:
        await asyncio.sleep(0)
        return kind(messages)

    first, second = rlver.evaluate(kind, n=4), rlver.evaluate(later, n=4)
    assert [t.turns for t in first.transcripts] == [t.turns for t in second.transcripts]
    assert first.transcripts[0].policy == "callable:kind"


def test_tables_have_a_row_per_dialogue_or_per_turn() -> None:
    evaluation = rlver.evaluate("scripted:hedge", n=5, repeats=2)
    by_dialogue, by_turn = evaluation.to_pandas(), evaluation.to_pandas(by="turn")
    assert len(by_dialogue) == 10 and by_dialogue["score"].mean() == pytest.approx(evaluation.score)
    assert len(by_turn) == sum(len(t.turns) for t in evaluation.transcripts)
    sums = by_turn["reasons"].map(lambda reasons: sum(reasons.values()))
    assert sums.tolist() == pytest.approx(by_turn["change"].tolist())
    with pytest.raises(rlver.RlverError, match="'dialogue' or 'turn'"):
        evaluation.to_pandas(by="word")


class Clerk:
    """A user of one's own, without an identity."""

    async def open(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Opening:
        return rlver.Opening("I need a form.")

    async def react(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Reaction:
        return rlver.Reaction(change=10 if "form" in dialogue.turns[-1].reply else -10, utterance="Well?")


def test_any_object_with_two_methods_is_a_user() -> None:
    good = rlver.evaluate(lambda messages: "Here is your form.", user=Clerk(), n=3)
    bad = rlver.evaluate(lambda messages: "Come back tomorrow.", user=Clerk(), n=3)
    assert (good.score, bad.score) == (100, 0)
    assert "Clerk" in good.transcripts[0].user


def test_play_returns_dialogues_in_the_order_of_profiles() -> None:
    profiles = rlver.generate_profiles("en", n=6, split="train", seed=4)
    dialogues = rlver.play(
        profiles, "scripted:oracle", rlver.embedded_user("en", "challenging"), preset="paper", seed=1
    )
    assert [dialogue.profile.id for dialogue in dialogues] == [profile.id for profile in profiles]
    assert all(dialogue.stop for dialogue in dialogues)
    assert dialogues.transcripts[0].preset == "paper" and len(dialogues.to_pandas()) == 6
    assert rlver.play([], "scripted:oracle").to_pandas().empty


def test_a_preset_of_ones_own() -> None:
    short = PRESETS["sage"].model_copy(update={"name": "short", "replies": 2, "start": 50.0})
    evaluation = rlver.evaluate("scripted:oracle", n=3, preset=short)
    assert {t.preset for t in evaluation.transcripts} == {"short"}
    assert max(len(t.turns) for t in evaluation.transcripts) <= 2


def test_everything_works_inside_a_running_event_loop() -> None:
    async def cell() -> float:
        return rlver.evaluate("scripted:hedge", n=3).score

    assert asyncio.run(cell()) == rlver.evaluate("scripted:hedge", n=3).score


def test_failing_functions_are_counted_and_cost_nothing_else() -> None:
    calls = 0

    def flaky(messages: list[dict[str, str]]) -> str:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("no route to host")
        return kind(messages)

    evaluation = rlver.evaluate(flaky, n=6)
    assert evaluation.errors == 1 and evaluation.summary.n == 5
    (failed,) = (t for t in evaluation.transcripts if not t.stop.scored)
    assert "flaky" in failed.error and "no route to host" in failed.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "scripted:nobody"}, "scripted:nobody"),
        ({"policy": 7}, "7"),
        ({"policy": "scripted:hedge", "user": "nobody"}, "nobody"),
        ({"policy": "scripted:hedge", "user": object()}, "object"),
        ({"policy": "scripted:hedge", "n": 1000}, "100 profiles"),
        ({"policy": "scripted:hedge", "preset": "sago"}, "sago"),
        ({"policy": "scripted:hedge", "resume": True}, "out"),
        ({"policy": lambda messages: 3}, "int"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(rlver.RlverError, match=message):
        rlver.evaluate(**({"n": 2} | arguments))  # type: ignore[arg-type]


def test_training_from_python_equals_training_from_the_command_line(policy_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 2, "batch": 8, "max_tokens": 6}
    run = rlver.train(policy=str(policy_folder), out=tmp_path / "api", **settings)
    command = ["train", "--policy", str(policy_folder), "--steps", "2", "--out", str(tmp_path / "cli")]
    assert main([*command, "--set", "batch=8", "--set", "max_tokens=6"]) == 0
    assert run.metrics == rlver.load_run(tmp_path / "cli").metrics
    weights = [(tmp_path / name / "policy" / "model.safetensors").read_bytes() for name in ("api", "cli")]
    assert weights[0] == weights[1]
    table = run.to_pandas()
    assert table.index.tolist() == [1, 2] and {"reward", "loss", "entropy"} <= set(table)
    run.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(rlver.RlverError, match="no training run"):
        rlver.load_run(tmp_path)
    with pytest.raises(rlver.RlverError, match="not both"):
        rlver.train(rlver.TrainConfig(), out=tmp_path / "both", steps=3)


def test_training_with_a_user_of_ones_own(policy_folder: Path, tmp_path: Path) -> None:
    run = rlver.train(policy=str(policy_folder), out=tmp_path / "run", user=Clerk(), steps=1, batch=8, max_tokens=6)
    assert len(run.metrics) == 1 and "Clerk" in (run.folder / "config.json").read_text(encoding="utf-8")


def test_a_user_whose_reaction_is_none_is_named() -> None:
    class Silent(Clerk):
        async def react(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Reaction:
            return "Well?"  # type: ignore[return-value]

    with pytest.raises(rlver.RlverError, match="Silent: react returned 'Well\\?', which is no Reaction"):
        rlver.evaluate("scripted:hedge", user=Silent(), n=1)


def test_one_user_of_ones_own_serves_all_types_of_a_curriculum(policy_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 1, "batch": 8, "max_tokens": 6, "curriculum": "schedule", "schedule": {0: 0.5}}
    run = rlver.train(policy=str(policy_folder), out=tmp_path / "run", user=Clerk(), **settings)
    assert len(run.metrics) == 1
    assert json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["user"] == "Clerk"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"profiles": "missing.jsonl"}, "missing.jsonl"), ({"device": "toaster"}, "toaster"), ({}, "already holds a run")],
)
def test_what_is_wrong_is_reported_before_the_tiny_policy_is_pretrained(
    settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlver.tiny.base_policy", lambda *_: pytest.fail("pretraining has begun"))
    if not settings:
        (tmp_path / "config.json").write_text(json.dumps({"config": {}}), encoding="utf-8")
    with pytest.raises(rlver.RlverError, match=message):
        rlver.train(out=tmp_path, **settings)
