"""Figures are never made up: acts come from users that report them, and intervals from seeds alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import rlver
from rlver.core.dialogue import TokenRecord
from rlver.core.emotion import get_preset
from rlver.core.profile import ChatIntention, Intention
from rlver.core.transcript import Transcript
from rlver.evaluation.act_matrix import NONE
from rlver.evaluation.dialogue_metrics import dialogue_metrics
from rlver.evaluation.report import intention_table, matrix_table, score_table
from rlver.evaluation.results import BenchmarkResults, Sampling
from rlver.evaluation.suite import Entry, Suite
from rlver.evaluation.tables import Evaluation
from rlver.policies.scripted import ScriptedPolicy
from rlver.stories import benchmark_profiles
from rlver.users.embedded.acts import NEED_ACTS

GOOD_ADVICE = "You could call her tomorrow."


class OwnUser:
    """A user of one's own. Its identity resembles that of an embedded user."""

    identity = "embedded-in-a-company"

    def __init__(self, *acts: str) -> None:
        self.acts = acts

    async def open(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Opening:
        """The first utterance."""
        return rlver.Opening("I need somebody to listen.")

    async def react(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Reaction:
        """The same reaction to every reply."""
        return rlver.Reaction(change=5, utterance="Go on.", acts=self.acts)


def evaluate(*acts: str, n: int = 8) -> Evaluation:
    """The evaluation of a function with a user that reports these acts for every reply."""
    return rlver.evaluate(lambda messages: GOOD_ADVICE, user=OwnUser(*acts), n=n)


def shown(table: Any) -> list[str]:
    """The lines of a table."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_user_that_reports_no_acts_leaves_no_figures_about_acts(tmp_path: Path) -> None:
    policies = [ScriptedPolicy(name, "en") for name in ("generic", "oracle")]
    entries = [Entry(policy, OwnUser(), benchmark_profiles("en")[:8]) for policy in policies]
    suite = Suite(tmp_path, get_preset("sage"))
    results = suite.results(entries, "built-in", Sampling(temperature=None, max_tokens=None))
    for result in results.policies:
        assert result.fit is None and result.acts == {}
        # Everything else is measured: scores by the user's changes, fluency and repetition by the replies themselves.
        assert result.summary.n == 8 and result.fluent is not None
        assert all(not reaction.acts for t in suite.transcripts[result.policy] for reaction in reactions(t))
    assert BenchmarkResults.model_validate_json((tmp_path / "results.json").read_bytes()) == results

    header, _, *rows, _ = shown(score_table(results.policies))
    fit = header.replace("95 %", "interval").split().index("fit")
    assert [row.split()[fit] for row in rows] == ["-", "-"]
    *matrix, caption = shown(matrix_table(results.policies[0]))
    assert "report no acts" in caption
    assert [line.split()[1:] for line in matrix[-8:]] == [["-"] * 9] * 8
    assert any(character.isdigit() for character in shown(intention_table(results.policies))[-1])


def reactions(transcript: Transcript) -> list[rlver.Reaction]:
    """The reactions in a transcript."""
    return [turn.reaction for turn in transcript.turns if turn.reaction is not None]


def test_tables_hold_no_acts_where_none_were_reported() -> None:
    assert set(evaluate().to_pandas(by="turn")["acts"]) == {""}
    assert set(evaluate("advise").to_pandas(by="turn")["acts"]) == {"advise"}


def test_a_user_of_ones_own_that_reports_acts_has_figures() -> None:
    result = evaluate("advise").result
    assert result.acts and all(
        {act for act, count in row.items() if count} == {"advise"} for row in result.acts.values()
    )
    assert result.fit is not None and 0 < result.fit < 1  # advice suits some of the eight intentions, and not all
    assert "report no acts" not in "\n".join(shown(matrix_table(result)))


def test_acts_that_only_the_user_knows_are_not_judged() -> None:
    own, mixed = evaluate("juggle").result, evaluate("juggle", "advise").result
    assert own.fit is None and own.acts == {}
    assert mixed.fit == evaluate("advise").result.fit
    assert set(mixed.acts[Intention.ADVISE]) == {*NEED_ACTS, NONE}


def test_an_embedded_user_that_recognises_no_act_is_a_measurement() -> None:
    """Zero acts out of many replies are a result: the users would have reported them."""
    evaluation = rlver.evaluate(lambda messages: "The sky is blue.", n=6)
    assert evaluation.result.fit == 0
    rows = evaluation.result.acts.values()
    assert sum(row[NONE] for row in rows) == sum(sum(row.values()) for row in rows) >= 6


@pytest.mark.parametrize(
    ("acts", "always_fit", "fit"), [((), False, None), ((), True, 0.0), (("juggle",), False, None)]
)
def test_training_metrics_leave_out_what_is_unknown(acts: tuple[str, ...], always_fit: bool, fit: float | None) -> None:
    dialogues = rlver.play(benchmark_profiles("en")[:4], lambda messages: GOOD_ADVICE, user=OwnUser(*acts))
    for turn in (turn for dialogue in dialogues for turn in dialogue.turns):
        turn.tokens = TokenRecord([1], [2, 3], [0.0, 0.0])
    metrics = dialogue_metrics(dialogues, always_fit=always_fit)
    assert metrics.get("fit") == fit
    assert metrics["tokens_per_reply"] == 2


def test_chit_chat_profiles_have_no_acts_to_judge() -> None:
    """A chit-chat intention asks for none of the eight acts, whatever the user reports."""
    chat = benchmark_profiles("en")[0].model_copy(update={"intention": ChatIntention.WAIT})
    evaluation = rlver.evaluate(lambda messages: GOOD_ADVICE, user=OwnUser("advise"), profiles=[chat])
    assert evaluation.result.fit is None and evaluation.result.acts == {}
    assert set(evaluation.summary.by_intention) == {ChatIntention.WAIT}


def test_the_interval_of_a_drift_is_the_same_in_every_process() -> None:
    code = (
        "from rlver.evaluation.rejudge import Rejudged, drift\n"
        "changes = [(i % 7 - 3, i % 5 - 2) for i in range(40)]\n"
        "items = [Rejudged(profile=f'p{i // 4}', policy='p', dialogue=i, turn=0, stored=a, now=b)\n"
        "         for i, (a, b) in enumerate(changes)]\n"
        "print(drift(items))"
    )
    outputs = set()
    for hash_seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        outputs.add(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )
    assert len(outputs) == 1
