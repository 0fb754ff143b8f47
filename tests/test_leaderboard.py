"""Comparison of runs: intervals that cover the truth, tests that rarely err, ties that stay ties."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import transcript

from rlver.cli.main import main
from rlver.core.correlation import mean_ranks, spearman
from rlver.core.dialogue import StopReason
from rlver.core.errors import RlverError
from rlver.core.profile import Character, Intention
from rlver.core.transcript import Transcript, read_transcripts
from rlver.evaluation.agreement import agreement
from rlver.evaluation.compare import compare
from rlver.evaluation.leaderboard import rank_runs
from rlver.evaluation.run_files import read_runs
from rlver.evaluation.statistics import summarise
from rlver.formats.profile_files import read_profiles

NAMES = ["claude3.7-think", "deepseek-v3-0324", "deepseek-v3-1227", "gemini2.0-flash", "gpt-4.1", "llama3.3-70b",
         "openai-o1", "qwen2.5-72b"]  # fmt: skip


def run(scores: list[float], policy: str = "p") -> list[Transcript]:
    return [transcript(score, f"profile-{i}").model_copy(update={"policy": policy}) for i, score in enumerate(scores)]


def noisy(shift: float, seed: int, n: int = 60, noise: float = 10) -> list[Transcript]:
    base, rng = random.Random(1), random.Random(seed)
    return run([base.uniform(20, 80) + shift + rng.gauss(0, noise) for _ in range(n)], f"p{seed}")


@pytest.fixture(scope="module")
def recorded(official: Path) -> Path:
    """The folder of the recorded dialogues that DeepSeek-V3 judged."""
    return official.parent / "transcripts" / "deepseek-v3"


def test_paired_comparison_finds_what_is_there_and_nothing_else() -> None:
    found = compare(noisy(8, 2), noisy(0, 3))
    assert found.n == 60 and found.ci95[0] < 8 < found.ci95[1] and found.p < 0.01
    assert found.detectable == pytest.approx(2.8016 * 10 * 2**0.5 / 60**0.5, rel=0.25)
    assert found.effect == pytest.approx(found.difference / (found.detectable * 60**0.5 / 2.8016), rel=1e-3)
    false_alarms = sum(compare(noisy(0, seed), noisy(0, seed + 1000)).p < 0.05 for seed in range(10, 90))
    assert false_alarms <= 9
    same = compare(noisy(0, 5), noisy(0, 5))
    assert (same.difference, same.p, same.effect, same.ci95) == (0, 1, 0, (0, 0))


def test_paired_comparison_by_hand() -> None:
    a, b = run([10, 20, 30, 40]), run([0, 10, 20])
    found = compare(a, [*b, transcript(90, "other"), transcript(0, "profile-3", StopReason.ERROR)])
    assert (found.n, found.left_out, found.difference) == (3, 2, 10)
    assert found.p == pytest.approx(0.25, abs=0.02)  # two of the eight ways to flip three equal signs
    repeats = compare([*run([0, 0]), *run([20, 20])], run([10, 10]))
    assert (repeats.n, repeats.difference) == (2, 0)
    with pytest.raises(RlverError, match="share 0 scored profiles"):
        compare(a, [transcript(1, "x"), transcript(2, "y")])


def test_a_better_rank_needs_significance() -> None:
    table = rank_runs({"good": noisy(20, 2), "fair": noisy(0, 5), "likewise": noisy(0, 6), "poor": noisy(-25, 5)})
    assert [place.rank for place in table] == [1, 2, 2, 4]
    assert table[0].rank_ci95 == (1, 1) and table[3].rank_ci95 == (4, 4)
    assert all(place.rank_ci95[0] <= place.rank <= place.rank_ci95[1] for place in table)
    twins = rank_runs({"a": noisy(0, 1), "b": noisy(0, 1)})
    assert [place.rank for place in twins] == [1, 1]
    with pytest.raises(RlverError, match="share no profile"):
        rank_runs({"a": run([1]), "b": [transcript(1, "x")]})


def test_repeats_do_not_make_a_run_surer() -> None:
    once, often = summarise(noisy(0, 3)), summarise(noisy(0, 3) * 4)
    assert once.ci95 == pytest.approx(often.ci95) and often.n == 4 * once.n


def test_summary_has_intervals_for_every_share_and_group() -> None:
    run = [
        transcript(100 * (i % 3 == 0), str(i), intention=Intention.LISTEN if i % 2 else Intention.ADVISE)
        for i in range(60)
    ]
    summary = summarise(run)
    assert summary.success_ci95[0] < summary.success < summary.success_ci95[1]
    assert summary.failure_ci95[0] < summary.failure < summary.failure_ci95[1]
    assert set(summary.intentions) == {Intention.LISTEN, Intention.ADVISE}
    assert summary.intentions[Intention.LISTEN].n == 30 == summary.characters[Character.PASSIVE].n / 2


def test_spearman_and_ranks_by_hand() -> None:
    assert mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0
    found = agreement({"a": 1, "b": 2, "c": 3, "d": 9}, {"a": 11, "b": 12, "c": 13, "x": 0})
    assert (found.n, found.spearman, found.shift) == (3, pytest.approx(1), pytest.approx(10))
    with pytest.raises(RlverError, match="share 2"):
        agreement({"a": 1, "b": 2}, {"a": 1, "b": 2})


@given(st.lists(st.integers(0, 20), min_size=3, max_size=30))
def test_ranks_sum_up_and_follow_the_values(values: list[int]) -> None:
    ranks = mean_ranks(np.array(values, dtype=float))
    assert ranks.sum() == len(values) * (len(values) + 1) / 2
    assert all((ranks[i] < ranks[j]) == (a < b) for i, a in enumerate(values) for j, b in enumerate(values))


def test_recorded_leaderboard_has_the_published_scores(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", *map(str, sorted(recorded.glob("*.jsonl"))), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    expected = json.loads((recorded.parents[1] / "expected_scores.json").read_text("utf-8"))
    assert sorted(place["name"] for place in table) == NAMES
    for place in table:
        assert set(place) == {"name", "n", "score", "success", "failure", "ci95", "rank", "rank_ci95"}
        wanted = expected[f"deepseek-v3/{place['name']}"]
        assert place["n"] == wanted["n"] and place["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert round(place["success"] * 70) == wanted["success"] and round(place["failure"] * 70) == wanted["failure"]
        assert place["ci95"][0] < place["score"] < place["ci95"][1]
    assert [place["rank"] for place in table] == sorted(place["rank"] for place in table)
    assert main(["leaderboard", str(recorded)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES) and "Tie for 1: gpt-4.1, claude3.7-think" in shown
    assert "claude3.7-think and deepseek-v3-0324" in shown.replace("\n", " ")


def test_judge_swap_on_the_recorded_dialogues(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judges", str(recorded), str(recorded.parent / "gpt-4o"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["openai-o1"] and found["dialogues"]["n"] == 70
    low, high = found["dialogues"]["ci95"]
    assert -1 <= low < found["dialogues"]["spearman"] < high <= 1 and found["dialogues"]["shift"] > 10
    assert main(["judges", str(recorded), str(recorded)]) == 0
    assert "Over 8 policies: Spearman 1.00" in capsys.readouterr().out


def test_official_files_come_in_and_go_back(recorded: Path, tmp_path: Path) -> None:
    ours, profiles, back, again = (tmp_path / name for name in ("t.jsonl", "p.jsonl", "b.jsonl", "a.jsonl"))
    source = recorded / "gpt-4.1.jsonl"
    assert main(["import-sage", str(source), "--out", str(ours), "--profiles", str(profiles)]) == 0
    found = read_transcripts(ours)
    assert len(found) == 70 and {t.policy for t in found} == {"gpt-4.1"} and {t.user for t in found} == {"official"}
    assert main(["import-sage", str(ours), "--back", "--profiles", str(profiles), "--out", str(back)]) == 0
    for line, original in zip(*(path.read_text("utf-8").splitlines() for path in (back, source)), strict=True):
        mine, theirs = json.loads(line), json.loads(original)
        for field in ("id", "emo_point", "emo_state", "target", "player", "character", "topic"):
            assert mine[field] == theirs[field]
        for a, b in zip(mine["history"], theirs["history"], strict=True):
            assert [a.get(k) for k in ("role", "content", "emotion-point")] == [
                b.get(k) for k in ("role", "content", "emotion-point")
            ]
    both = tmp_path / "both"
    assert main(["import-sage", str(source), str(recorded / "openai-o1.jsonl"), "--out", str(both)]) == 0
    assert {file.name for file in both.iterdir()} == {"gpt-4.1.jsonl", "openai-o1.jsonl"}
    assert (both / "gpt-4.1.jsonl").read_bytes() == ours.read_bytes()
    assert main(["import-sage", str(back), "--out", str(again), "--name", "gpt-4.1"]) == 0
    assert read_transcripts(again) == found
    before = read_profiles(profiles)
    assert main(["import-sage", str(profiles), "--back", "--out", str(back)]) == 0
    assert [p.model_copy(update={"opening": ""}) for p in read_profiles(back)] == before
    assert main(["import-sage", str(recorded.parents[1] / "profiles" / "sentient_open.jsonl"), "--out", str(ours)]) == 0
    assert len(read_profiles(ours)) == 70 and all(p.opening for p in read_profiles(ours))


def test_our_profiles_survive_the_official_form(tmp_path: Path) -> None:
    from rlver.formats.profile_files import write_profiles
    from rlver.stories import benchmark_profiles

    mine = benchmark_profiles("zh")[:24]
    write_profiles(tmp_path / "p.jsonl", mine)
    assert main(["import-sage", str(tmp_path / "p.jsonl"), "--back", "--out", str(tmp_path / "o.jsonl")]) == 0
    for before, after in zip(mine, read_profiles(tmp_path / "o.jsonl"), strict=True):
        assert (after.id, after.intention, after.persona.character, after.story.text, after.persona.age) == (
            before.id, before.intention, before.persona.character, before.story.text, before.persona.age
        )  # fmt: skip
        assert after.persona.name == before.persona.name and before.persona.text in after.persona.text


def test_the_drift_of_the_same_judge_is_zero_and_that_of_another_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rejudged(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["rejudge", str(log), *more, "--json", "--n", "5"]) == 0
        (drift,) = json.loads(capsys.readouterr().out)
        return drift

    bench = ["bench", "--policy", "scripted:hedge", "--n", "5", "--out", str(tmp_path)]
    assert main(bench) == 0
    log = tmp_path / "1-scripted-hedge.jsonl"
    same = rejudged("--user", "embedded", "--out", str(tmp_path / "drift.jsonl"))
    assert (same["difference"], same["same_direction"], same["failed"]) == (0, 1, 0)
    lines = [json.loads(line) for line in (tmp_path / "drift.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == same["n"] and all(line["stored"] == line["now"] for line in lines)
    assert rejudged("--user", "challenging")["difference"] < 0
    with FakeServer() as server:
        other = rejudged("--user", f"openai:fake@{server.url}")
        assert other["n"] == same["n"] and other["same_direction"] < 1
        assert server.calls["ok"] == same["n"]  # one verdict a reply, and no speech
    (tmp_path / "more").mkdir()
    assert main(["bench", "--policy", "scripted:oracle", "--n", "3", "--out", str(tmp_path / "more")]) == 0
    capsys.readouterr()
    assert main(["rejudge", str(log), str(tmp_path / "more"), "--user", "embedded", "--n", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "+0.00" in line] == ["scripted:hedge", "scripted:oracle"]


def test_runs_get_names_and_bad_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert main(["bench", "--policy", "scripted:hedge", "--n", "4", "--out", str(tmp_path / name)]) == 0
    logs = [next((tmp_path / name).glob("1-*.jsonl")) for name in ("a", "b")]
    assert len(read_runs(logs)) == 2
    capsys.readouterr()
    assert main(["compare", *map(str, logs)]) == 0
    assert "+0.0 points" in capsys.readouterr().out
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"history": [], "emo_point": 5}\n', encoding="utf-8")
    for command in (["leaderboard", str(broken)], ["leaderboard", str(tmp_path / "none.jsonl")],
                    ["import-sage", str(logs[0]), "--out", str(tmp_path / "x")],
                    ["import-sage", str(logs[0]), "--back", "--out", str(tmp_path / "x")],
                    ["compare", str(logs[0]), str(tmp_path)]):  # fmt: skip
        assert main(command) == 1
        assert capsys.readouterr().err.startswith("Error: ")
