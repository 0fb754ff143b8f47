"""The judgement against the recorded dialogues of the benchmark and people's labels; skipped where they are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.users.calibration.measures import official_score, score
from rlver.users.calibration.recorded import judged_replies, read_recorded
from rlver.users.calibration.tagging import (
    STRATEGIES,
    LabelledReply,
    agreement,
    compare,
    fit_table,
    read_labelled,
    strategy,
)
from rlver.users.embedded.weights import default_weights


@pytest.fixture(scope="module")
def sage(official: Path) -> Path:
    """The folder with recorded dialogues."""
    folder = official.parent
    if not (folder / "transcripts").is_dir():
        pytest.skip("official data not found; set RLVER_DATA")
    return folder


def test_the_official_scores_come_out_to_four_decimals(sage: Path) -> None:
    expected = json.loads((sage / "expected_scores.json").read_text())
    assert len(expected) == 10
    for name, figures in expected.items():
        dialogues = read_recorded([sage / "transcripts" / f"{name}.jsonl"])
        assert {"n": len(dialogues), **official_score([d.final for d in dialogues])} == figures


def test_recorded_replies_of_a_model_are_judged_as_measured(sage: Path) -> None:
    """A coarse floor on one fast part; `rlver judge cross-validate` gives the figures on unseen models."""
    paths = [sage / "transcripts" / "deepseek-v3" / f"{name}.jsonl" for name in ("openai-o1", "gpt-4.1")]
    some = {p.profile.id for p in read_recorded(paths[:1])[:12]}
    dialogues = [d for d in read_recorded(paths) if d.profile.id in some]
    found = score(judged_replies(dialogues), dialogues, default_weights())
    assert found["turn"]["pearson"] > 0.55 and found["turn"]["sign_accuracy"] > 0.7
    parts = found["models"]["by_model"]
    assert parts["gpt-4.1"]["judged"]["score"] > parts["openai-o1"]["judged"]["score"] + 15


def test_tags_agree_with_people(sage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sage.parent / "esconv" / "dev_strategies.jsonl"
    if not path.is_file():
        pytest.skip("official data not found; set RLVER_DATA")
    capsys.readouterr()
    assert main(["judge", "tag-agreement", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2985 and found["macro_f1"] >= 0.45 and 0 < found["kappa"] < found["accuracy"]
    # Fitted without the dialogues it is asked about, the reading stays close to that.
    assert found["held_out"]["macro_f1"] >= 0.44


def test_a_reading_of_strategies(tmp_path: Path) -> None:
    def said(reply: str) -> str:
        return strategy(LabelledReply(reply, "Other", (("user", "I feel so low since he left."),)))

    assert said("How long have you felt like that?") == "Questions"
    assert said("I went through the same when my husband left me.") == "Self-disclosure"
    assert said("Maybe you could try to talk to a friend about it.") == "Providing Suggestions"
    assert said("Blip.") == "Other"
    perfect = compare(["Other", "Questions"], ["Other", "Questions"])
    assert perfect["accuracy"] == perfect["macro_f1"] == perfect["kappa"] == 1.0
    wrong = compare(["Other", "Questions"], ["Questions", "Other"])
    assert wrong["accuracy"] == wrong["macro_f1"] == 0 and wrong["kappa"] == -1

    path = tmp_path / "labels.jsonl"
    path.write_text('{"reply": "Hi", "strategy": "Other"}\n{"reply": "Hi", "strategy": "Nothing"}\n')
    with pytest.raises(RlverError, match=r"labels\.jsonl:2"):
        read_labelled(path)
    labelled = [LabelledReply(text, s, ()) for text, s in (("Hello!", "Other"), ("Why?", "Questions"))] * 30
    assert fit_table(labelled) == fit_table(labelled) and agreement(labelled)["n"] == 60
    assert {strategy(one, fit_table(labelled)) for one in labelled} == {"Other", "Questions"} < set(STRATEGIES)
