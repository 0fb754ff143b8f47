"""The benchmark: honest intervals, an honest fluency check, counts that can be done by hand, and repeatable runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlver.core.data import read_text
from rlver.core.dialogue import Reaction, StopReason, Turn
from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.core.profile import Character, Intention, Language
from rlver.core.transcript import Transcript
from rlver.evaluation.act_matrix import act_matrix, fit_share
from rlver.evaluation.benchmark import Pace, run_benchmark
from rlver.evaluation.fluency import FluencyCheck, replies_of
from rlver.evaluation.plots import learning_curve
from rlver.evaluation.repeated_replies import repeated_share
from rlver.evaluation.report import intention_table, matrix_table, score_table, transcript_text
from rlver.evaluation.results import assess
from rlver.evaluation.statistics import bootstrap_interval, summarise
from rlver.policies.load import load_policy
from rlver.policies.local import LocalPolicy
from rlver.policies.scripted import SCRIPTED_NAMES, ScriptedPolicy
from rlver.stories import benchmark_profiles
from rlver.text.words import words
from rlver.users.embedded.user import EmbeddedUser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM


def play(name: str, count: int = 24, seed: int = 0, slots: int = 64, language: Language = "en") -> list[Transcript]:
    profiles = benchmark_profiles(language)[:count]
    policy = ScriptedPolicy(name, language)
    return run_benchmark(profiles, policy, EmbeddedUser(language), get_preset("sage"), seed, pace=Pace(slots))


def transcript(
    score: float = 50.0,
    profile: str = "p",
    stop: StopReason = StopReason.TURN_LIMIT,
    intention: Intention = Intention.ABSOLVE,
    replies: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> Transcript:
    """A transcript with given (reply, acts) turns."""
    turns = [
        Turn(raw=text, reply=text, score=score, reaction=Reaction(change=5, utterance="Hm.", acts=acts))
        for text, acts in replies
    ]
    return Transcript(
        profile=profile, story="s", intention=intention, character=Character.PASSIVE, language="en", policy="test",
        user="test", preset="sage", prompt="", seed=0, think=False, opening="Hello.", turns=turns, stop=stop,
        score=score,
    )  # fmt: skip


def shuffled(sentence: str, language: Language, rng: random.Random) -> str:
    tokens = list(words(sentence, language))
    end = "" if tokens[-1][0].isalnum() else tokens.pop()
    rng.shuffle(tokens)
    return ("" if language == "zh" else " ").join(tokens) + end


def test_scripted_baselines_stand_in_the_order_that_they_deserve() -> None:
    scores = {name: summarise(play(name)).score for name in ("oracle", "hedge", "generic")}
    assert scores["oracle"] > scores["hedge"] > scores["generic"]
    assert scores["generic"] < 25


def test_same_seed_gives_identical_transcripts_whatever_the_number_of_slots() -> None:
    whole = play("random", 12)
    assert play("random", 12) == whole
    assert play("random", 12, slots=5) == whole
    assert play("random", 6) == whole[:6]
    assert play("random", 12, seed=1) != whole


def test_repeats_differ_and_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    profiles = benchmark_profiles("zh")[:3]
    transcripts = run_benchmark(
        profiles, ScriptedPolicy("hedge", "zh"), EmbeddedUser("zh"), get_preset("paper"), 0, repeats=2,
        pace=Pace(2),
        on_progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert [t.profile for t in transcripts] == [p.id for p in profiles] * 2
    assert transcripts[0].turns != transcripts[3].turns
    assert calls[-1] == (6, 6)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_scripted_replies_take_up_the_story_and_do_not_repeat(language: Language) -> None:
    for name in SCRIPTED_NAMES:
        transcripts = play(name, 2, language=language)
        assert all("{" not in turn.raw for t in transcripts for turn in t.turns)
        assert repeated_share(transcripts) == 0
    oracle = play("oracle", 8, language=language)
    handles = {p.id: [fact.handle for fact in p.story.facts] for p in benchmark_profiles(language)[:8]}
    assert all(any(handle in t.turns[0].raw for handle in handles[t.profile]) for t in oracle)


def test_unknown_script_is_named() -> None:
    with pytest.raises(RlverError, match=r"scripted:nice.*oracle"):
        ScriptedPolicy("nice", "en")


def test_bootstrap_interval_covers_the_truth() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(200):
        values = [rng.gauss(50, 10) for _ in range(60)]
        low, high = bootstrap_interval(values, [str(i) for i in range(60)])
        covered += low <= 50 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_clusters_widen_the_interval_when_repeats_agree() -> None:
    rng = random.Random(1)
    values = [value for value in (rng.uniform(0, 100) for _ in range(30)) for _ in range(5)]
    together = bootstrap_interval(values, [str(i // 5) for i in range(150)])
    apart = bootstrap_interval(values, [str(i) for i in range(150)])
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])


def test_summary_by_hand() -> None:
    summary = summarise(
        [
            transcript(100, "a", StopReason.DELIGHTED),
            transcript(0, "b", StopReason.BAD_FORMAT, Intention.LISTEN),
            transcript(50, "c", intention=Intention.LISTEN),
            transcript(40, "d", StopReason.ERROR),
        ]
    )
    assert (summary.n, summary.errors) == (3, 1)
    assert summary.score == pytest.approx(50)
    assert summary.success == pytest.approx(1 / 3)
    assert summary.failure == pytest.approx(1 / 3)
    assert summary.by_intention == {Intention.ABSOLVE: 100, Intention.LISTEN: 25}
    assert summary.ci95[0] <= summary.score <= summary.ci95[1]
    with pytest.raises(RlverError, match="1 dialogues"):
        summarise([transcript(stop=StopReason.ERROR)])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_fluency_check_tells_sentences_from_word_salad(language: Language) -> None:
    lines = [line for line in read_text("rlver.users.embedded", f"data/reference.{language}.txt").splitlines() if line]
    check = FluencyCheck.calibrate(language, lines[::2])
    rng = random.Random(0)
    unseen = [line for line in lines[1::2] if len(words(line, language)) >= 6]
    assert check.share(unseen) >= 0.9
    assert check.share([shuffled(line, language, rng) for line in unseen]) <= 0.2
    assert check.share(lines[::2]) == pytest.approx(0.95, abs=0.01)


def test_fluency_check_lets_lists_pass_and_finds_garble_among_sentences() -> None:
    check = FluencyCheck("en", 0.0)
    assert check.passes("Here are some tips. 1. Stay calm. 2. Sleep well. I hope this helps you.")
    assert not check.passes("I am so sorry to hear that. The your of call with me short a was thesis the gave.")
    assert not check.passes("")
    assert not check.passes("   ")
    with pytest.raises(RlverError, match="calibrated"):
        FluencyCheck.calibrate("en", [])


def test_fit_matrix_and_repeats_by_hand() -> None:
    transcripts = [
        transcript(
            intention=Intention.ABSOLVE,
            replies=(("It was not you.", ("absolve",)), ("It was NOT you!", ("absolve", "advise")), ("Well.", ())),
        ),
        transcript(intention=Intention.ADVISE, replies=(("Call them.", ("advise",)),)),
    ]
    matrix = act_matrix(transcripts)
    assert matrix[Intention.ABSOLVE] == {
        "absolve": 2, "reflect": 0, "weigh": 0, "empathise": 0, "listen": 0, "motives": 0, "advise": 1, "praise": 0,
        "none": 1,
    }  # fmt: skip
    assert matrix[Intention.ADVISE]["advise"] == 1
    assert sum(matrix[Intention.LISTEN].values()) == 0
    assert fit_share(transcripts) == pytest.approx(3 / 4)
    assert repeated_share(transcripts) == pytest.approx(1 / 4)
    assert fit_share([transcript()]) == repeated_share([]) == 0


def test_unjudged_replies_count_nowhere() -> None:
    broken = transcript(0, stop=StopReason.BAD_FORMAT)
    broken.turns.append(Turn(raw="<think>", score=40))
    assert replies_of([broken]) == []
    assert sum(act_matrix([broken])[Intention.ABSOLVE].values()) == 0


def test_reports_print_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    transcripts = play("weigh", 4)
    transcripts[0].turns[0].reply += "\x1b[2J[bold]"
    check = FluencyCheck.calibrate("en", replies_of(transcripts))
    result = assess(ScriptedPolicy("weigh", "en"), transcripts, check)
    console = Console(width=80)
    for thing in (
        score_table([result]), intention_table([result]), matrix_table(result), transcript_text(transcripts[0], 40),
    ):  # fmt: skip
        console.print(thing)
    shown = capsys.readouterr().out
    assert "scripted:weigh" in shown
    assert all(name.value in shown for name in Intention)
    assert f"{result.summary.score:.1f}" in shown
    assert "[bold]" in shown and "\x1b[2J" not in shown
    assert transcripts[0].stop.meaning in shown.replace("\n", " ")


def test_learning_curve_is_a_picture(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(f'{{"step": {i}, "reward": {i / 100}}}' for i in range(40)), encoding="utf-8")
    out = learning_curve({"grpo": metrics, "ppo": metrics}, tmp_path / "sub" / "curve.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    metrics.write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(RlverError, match=r"metrics\.jsonl: no line"):
        learning_curve({"x": metrics}, out)


def test_a_model_folder_resolves_and_does_not_depend_on_the_batch(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    note = {"think": True, "language": "en", "temperature": 0.7, "steps": 3}
    (tmp_path / "rlver.json").write_text(json.dumps(note), encoding="utf-8")
    noted = load_policy(str(tmp_path), "en")
    assert isinstance(noted, LocalPolicy) and noted.think and noted.temperature == 0.7
    greedy = load_policy(str(tmp_path), "en", temperature=0)
    assert isinstance(greedy, LocalPolicy) and greedy.temperature == 0
    with pytest.raises(RlverError, match="'en'"):
        load_policy(str(tmp_path), "zh")
    runs = []
    for slots in (6, 2):
        policy = load_policy(f"hf:{tmp_path}", "en", think=False, max_tokens=8, temperature=1.0)
        profiles = benchmark_profiles("en")[:6]
        runs.append(run_benchmark(profiles, policy, EmbeddedUser("en"), get_preset("sage"), 0, pace=Pace(slots)))
    assert runs[0] == runs[1]
    assert assess(policy, runs[0], None).temperature == 1.0
    assert len({tuple(turn.raw for turn in t.turns) for t in runs[0]}) == 6
    assert runs[0][0].prompt and not runs[0][0].think


def test_logs_and_results_carry_the_git_revision_and_timings(tmp_path: Path) -> None:
    from rlver.cli.main import main
    from rlver.version import revision

    assert main(["bench", "--policy", "scripted:hedge", "--n", "2", "--out", str(tmp_path)]) == 0
    head = json.loads((tmp_path / "1-scripted-hedge.jsonl").read_text(encoding="utf-8").splitlines()[0])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert head["versions"].get("revision", "") == results["revision"] == revision()
    timing = (tmp_path / "timing.csv").read_text(encoding="utf-8").splitlines()
    assert len(timing) == 3 and all(float(line.split(",")[-1]) > 0 for line in timing[1:])
