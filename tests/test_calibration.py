"""The judgement that can be checked: fitted weights, replay of recorded dialogues, measures, the red team."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlver.cli.main import main
from rlver.core.correlation import spearman
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.core.profile import Intention
from rlver.core.transcript import record, write_transcripts
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import play
from rlver.stories.generate import benchmark_profiles, generate
from rlver.users.calibration import redteam
from rlver.users.calibration.cross_validation import cross_validate
from rlver.users.calibration.fit import Design, fit
from rlver.users.calibration.measures import model_measures, predict
from rlver.users.calibration.recorded import JudgedReply, RecordedDialogue, judged_replies, read_ids, read_recorded
from rlver.users.embedded.judge import STATE, STEPS
from rlver.users.embedded.user import EmbeddedUser
from rlver.users.embedded.weights import Shape, Weights, default_weights, read_weights

PRESET = PRESETS["sage"].model_copy(update={"fails_below": -1.0})
MODELS = ("random", "hedge", "praise", "oracle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transcripts of four scripted policies with our user, ten profiles each, one file a policy."""
    root = tmp_path_factory.mktemp("recorded")
    profiles = generate("en", "train", 10, 4)
    user = EmbeddedUser("en")
    for name in MODELS:
        dialogues = play(profiles, ScriptedPolicy(name, "en"), user, PRESET, seed=1)
        kept = [record(d, policy=name, user=user.identity, prompt="", seed=1) for d in dialogues]
        write_transcripts(root / f"{name}.jsonl", kept)
    return root


@pytest.fixture(scope="module")
def dialogues(folder: Path) -> list[RecordedDialogue]:
    return read_recorded([folder])


@pytest.fixture(scope="module")
def rows(dialogues: list[RecordedDialogue]) -> list[JudgedReply]:
    return judged_replies(dialogues)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def official_record(**changes: Any) -> dict[str, Any]:
    """A dialogue in the official format, written for this test."""
    record = {
        "id": "p1", "emo_point": 50, "player": "* 姓名：林小北\n* 年龄：30岁\n* 性别：女性\n* 职业：护士",
        "scene": "林小北的陶笛被邻居借走弄坏了。林小北觉得很委屈。\n####隐藏主题:\n你希望对方用心倾听",
        "character": "回避型", "task": "你希望对方用心倾听你的情绪宣泄",
        "history": [
            {"role": "user", "content": "邻居把我的陶笛弄坏了。", "emotion-point": 40},
            {"role": "assistant", "content": "陶笛坏了，你一定很委屈。我在听，慢慢说。"},
            {"role": "user", "content": "嗯，他连句道歉都没有。", "emotion-point": 50, "planning": {"change": 10}},
            {"role": "assistant", "content": "你应该去看心理医生。"},
        ],
    }  # fmt: skip
    return record | changes


def test_the_judgement_of_a_replayed_dialogue_is_the_judgement_it_was_recorded_with(rows: list[JudgedReply]) -> None:
    """The embedded user, replayed on its own transcripts, repeats every change, so transcripts lose nothing."""
    assert [p.change for p in predict(rows, default_weights())] == [row.change for row in rows]
    assert len(rows) > 200 and {row.model for row in rows} == set(MODELS)


def test_a_fit_recovers_known_points(rows: list[JudgedReply]) -> None:
    """Changes made from known points come back out of the fit, whatever the level of each model."""
    rng = random.Random(0)
    level = {model: 3.0 * k for k, model in enumerate(MODELS)}
    made = []
    for number in range(3000):
        row = rows[number % len(rows)]
        praise, mood = rng.choice([0.0, 0.3]), rng.choice([15.0, 45.0, 95.0])
        change = (4.0 if praise else -2.0) + (mood - 45.0) / 25 + level[row.model]
        reply = dict.fromkeys(row.observation.reply, 0.0) | {"praise": praise}
        state = dict.fromkeys(row.observation.state, 0.0) | {"mood": mood}
        seen = row.observation._replace(state=state, reply=reply, usual=1.0, fixed={})
        made.append(row.model_copy(update={"change": change, "observation": seen}))
    shape = fit(made, "en").shapes
    who = made[0].intention
    assert shape["praise"].at(0.3, who) - shape["praise"].at(0.0, who) == pytest.approx(6.0, abs=0.6)
    assert shape["mood"].at(95.0, who) - shape["mood"].at(15.0, who) == pytest.approx(3.2, abs=0.5)


def test_weights_predict_what_the_equations_predict(rows: list[JudgedReply]) -> None:
    design = Design(rows)
    everything = np.ones(len(rows), dtype=bool)
    solved = design.solve(everything)
    weights = design.weights(solved, everything)
    assert [p.total for p in predict(rows, weights)] == pytest.approx(design.predict(solved).tolist(), abs=0.05)
    assert fit(rows, "en") == fit(list(rows), "en")


def test_the_fit_recovers_the_order_of_models(rows: list[JudgedReply], dialogues: list[RecordedDialogue]) -> None:
    found = cross_validate(rows, dialogues)
    assert found["fits"] == 5 * (2 + 1) and found["n"] == len(rows)
    assert found["seen_models"]["turn"]["sign_accuracy"] > 0.7
    assert set(found["unseen_models"]["models"]["by_model"]) == set(MODELS)
    with pytest.raises(RlverError, match="at least 5 profiles and 3 models"):
        cross_validate([row for row in rows if row.model == "hedge"], dialogues)


def test_measures_by_hand() -> None:
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 20, 40])) == pytest.approx(0.9487, abs=1e-4)
    assert spearman(np.array([1.0, 1]), np.array([1.0, 2])) == 0
    profiles = generate("en", "train", 2)
    recorded = [
        RecordedDialogue(model=m, profile=p, opening="", start=40, turns=(), final=final)
        for m, finals in (("a", (100.0, 5.0)), ("b", (30.0, 20.0)))
        for p, final in zip(profiles, finals, strict=True)
    ]
    found = model_measures([90.0, 10.0, 40.0, 30.0], recorded)
    assert found["spearman"] == pytest.approx(1.0) and found["score_mae"] == pytest.approx((2.5 + 10) / 2)
    assert found["by_model"]["a"]["recorded"] == {"score": 52.5, "success": 1, "failure": 1}


def test_score_and_explain_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[JudgedReply]
) -> None:
    paths = [str(folder / f"{name}.jsonl") for name in MODELS]
    code, out, _ = run(capsys, "judge", "score", *paths, "--json")
    found = json.loads(out)
    assert code == 0 and found["n"] == len(rows)
    assert {"pearson", "spearman", "sign_accuracy", "ci95"} <= set(found["turn"]) == set(found["turn_without_score"])
    low, high = found["turn"]["ci95"]["pearson"]
    assert low <= found["turn"]["pearson"] <= high and found["turn"]["sign_accuracy"] == 1.0
    assert set(found["models"]["by_model"]) == set(MODELS) and set(found["calibration"]) == {str(s) for s in STEPS}
    assert sum(part["predicted"] for part in found["calibration"].values()) == pytest.approx(1)

    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join({row.profile for row in rows[:1]}))
    code, out, _ = run(capsys, "judge", "score", *paths, "--profiles-in", str(ids))
    assert code == 0 and "Over models: Spearman" in out and " 4 dialogues" in out

    code, out, _ = run(capsys, "judge", "explain", str(folder), "--dialogue", "2", "--turn", "2", "--json")
    found = json.loads(out)
    assert code == 0 and found["change"] == found["recorded"]
    assert sum(reason["points"] for reason in found["reasons"]) == pytest.approx(found["change"])
    code, out, _ = run(capsys, "judge", "explain", paths[0])
    assert code == 0 and "the recorded judge gave" in out and "how the user felt before the reply" in out
    code, out, err = run(capsys, "judge", "explain", paths[0], "--turn", "99")
    assert code == 1 and "judged replies" in err


def test_a_fit_can_be_used(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fit" / "weights.json"
    code, text, _ = run(capsys, "judge", "fit", str(folder), "--language", "en", "--out", str(out), "--json")
    summary = json.loads(text)
    weights = read_weights(out)
    assert code == 0 and summary["weights"] == weights.mark and summary["files"] == sorted(MODELS)
    again = tmp_path / "again.json"
    assert main(["judge", "fit", str(folder), "--language", "en", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert run(capsys, "judge", "score", str(folder), "--weights", str(out))[0] == 0
    assert EmbeddedUser("en", weights=weights).identity != EmbeddedUser("en").identity
    code, _, err = run(capsys, "judge", "fit", str(folder), "--language", "zh", "--out", str(out))
    assert code == 1 and "'zh'" in err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"history": []}, "history"),
        ({"history": [{"role": "user", "content": "a"}]}, "emotion-point"),
        ({"task": "?"}, "intention"),
    ],
)
def test_broken_official_transcripts(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(official_record(**change), ensure_ascii=False), encoding="utf-8")
    with pytest.raises(RlverError, match=complaint):
        read_recorded([path])


def test_an_official_transcript_is_replayed_with_its_own_scores(tmp_path: Path) -> None:
    path = tmp_path / "some-model.jsonl"
    path.write_text(json.dumps(official_record(), ensure_ascii=False), encoding="utf-8")
    (dialogue,) = read_recorded([path])
    assert dialogue.model == "some-model" and dialogue.profile.intention is Intention.LISTEN
    assert dialogue.profile.persona.character == "avoidant"
    (row,) = judged_replies([dialogue])  # the last reply was never judged
    assert (
        (row.emotion, row.change) == (40, 10)
        and row.observation.reply["listen"] > 0
        and row.observation.reply["echo"] > 0
    )
    ids = tmp_path / "ids.json"
    ids.write_text('["p1", "p2"]')
    assert read_ids(ids) == {"p1", "p2"}
    with pytest.raises(RlverError, match="no such file"):
        read_recorded([tmp_path / "none.jsonl"])


def test_weights_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one step more"):
        Shape(edges=(1.0,), points=(0.0,))
    path = tmp_path / "w.json"
    path.write_text('{"base": {}}')
    with pytest.raises(RlverError, match="these are not the weights"):
        read_weights(path)
    with pytest.raises(RlverError, match="judge fit"):
        read_weights(tmp_path / "none.json")
    shape = Shape(edges=(1.0, 2.0), points=(0.0, 1.0, 2.0), by_intention={Intention.PRAISE: (0.0, 0.0, 5.0)})
    assert [shape.at(v, Intention.PRAISE) for v in (0.9, 1.0, 2.0)] == [0.0, 1.0, 7.0]
    assert set(STATE) - {"intention"} <= set(default_weights().shapes)
    assert isinstance(default_weights(), Weights)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cheats_stay_below_and_honest_policies_above_their_limits(language: Any) -> None:
    profiles = generate(language, "benchmark", 8, 2507)
    found = redteam.run(profiles)
    assert found["failed"] == []
    assert set(found["cheats"]) >= {"generic praise", "garble", "empty", "greedy choice", "other language"}
    assert len(found["honest"]) == 3 and len(redteam.generic_sentences(language)) == 200


@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_kindness_for_everyone_does_not_pay(language: Any) -> None:
    """This cheat comes nearest to its limit, so it plays the whole benchmark."""
    name = "long and kind to everyone"
    policy = redteam.TacticPolicy(name, redteam.cheats(language, "vanilla")[name])
    user = EmbeddedUser(language, "vanilla", "heldout")
    dialogues = play(benchmark_profiles(language), policy, user, PRESETS["sage"], seed=0)
    assert 100 * np.mean([dialogue.reward for dialogue in dialogues]) <= redteam.LIMIT


def test_the_red_team_detects_a_judge_that_is_easily_pleased() -> None:
    """A judge whose weights give everybody ten points breaks every limit, and the command says so."""
    bought = default_weights().model_copy(update={"base": dict.fromkeys(Intention, 60.0)})
    found = redteam.run(generate("en", "benchmark", 2), user_types=("vanilla",), weights=bought)
    assert "generic praise (vanilla)" in found["failed"] and "greedy choice (vanilla)" in found["failed"]


def test_users_and_dynamics(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = run(capsys, "judge", "profile-user", "--json")
    users = json.loads(out)["users"]
    assert code == 0
    assert users["vanilla"]["acceptance"] == pytest.approx(0.524, abs=0.05)
    assert users["challenging"]["acceptance"] == pytest.approx(0.331, abs=0.05)
    assert users["vanilla"]["need_expression"] > users["challenging"]["need_expression"] > 0
    code, out, _ = run(capsys, "judge", "dynamics", str(folder), "--json")
    table = json.loads(out)["policies"]
    assert code == 0 and table["generic"]["score"] < table["hedge"]["score"] < table["oracle"]["score"]
    shares = [table["all five"][f"share of {step:+d}"] for step in STEPS]
    assert sum(shares) == pytest.approx(1, abs=0.001)
    assert table["all five"]["P(up | last up)"] > 0.5 > table["all five"]["P(up | last down)"]
