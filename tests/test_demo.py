"""`rlver demo` on a policy too small to learn: what it writes, and that it deletes nothing but an earlier demo."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from rlver.cli.main import main


def test_a_small_demo_writes_all_that_it_promises(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "demo"
    arguments = ["demo", "--policy", str(policy_folder), "--steps", "1", "--n", "8", "--out", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "hidden intention" in shown and "scripted:oracle" in shown and str(out / "summary.json") in shown
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["seed"], summary["preset"], summary["user_type"], summary["n"]) == (0, "sage", "vanilla", 8)
    for name in ("base", "trained", "terminal_reward", "base_seen_stories", "trained_seen_stories"):
        found = summary[name]
        assert found["ci95"][0] <= found["score"] <= found["ci95"][1]
        assert 0 <= found["fluent"] <= 1 and 0 <= found["fit"] <= 1 and found["by_intention"]
    assert summary["baselines"]["scripted:oracle"] > summary["baselines"]["scripted:generic"]
    assert (out / "learning_curve.png").stat().st_size > 0
    logs = {file.stem.partition("-")[2] for file in (out / "transcripts").glob("*.jsonl")}
    assert logs >= {"base", "trained", "terminal-reward"}
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    lines = importlib.import_module("demo_table").tables(summary)
    assert any(line.startswith("| trained, reward by turn |") for line in lines)


def test_nothing_but_an_earlier_demo_is_deleted(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["demo", "--policy", str(policy_folder), "--out", str(work)]) == 1
    assert "something other than an earlier demo" in capsys.readouterr().err
    assert (work / "thesis.txt").is_file()

    earlier = tmp_path / "earlier"
    (earlier / "turn").mkdir(parents=True)
    (earlier / "summary.json").write_text("{}", encoding="utf-8")
    policy_folder.rename(earlier / "turn" / "policy")
    for policy, why in (
        (earlier / "turn" / "policy", "which the demo replaces"),
        (tmp_path / "none", "no such folder"),
    ):
        assert main(["demo", "--policy", str(policy), "--out", str(earlier)]) == 1
        assert why in capsys.readouterr().err
        assert (earlier / "turn" / "policy" / "config.json").is_file()
