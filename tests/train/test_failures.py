"""Dialogues that fail: they are counted, shown and explained, and training continues with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import Toy, lines, make, quick

from rlver.cli.main import main
from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.errors import CallFailed, RlverError
from rlver.train.runs.training_run import run


class Moody(Toy):
    """Cannot be reached in some of the dialogues, in the order in which they begin."""

    def __init__(self, broken: set[int], **values: Any) -> None:
        super().__init__(**values)
        self.broken = broken
        self.seeds: list[int] = []

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Every group has a seed of its own."""
        if seed not in self.seeds:
            self.seeds.append(seed)
        if self.seeds.index(seed) in self.broken:
            raise CallFailed("status 400: refused")
        return await super().react(dialogue, seed)


def test_failures_are_counted_and_their_reasons_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlver.train.runs.training_run.training_users", lambda config: {"vanilla": Moody({1, 2})})
    run(quick(base, batch=6, steps=2, zero_variance="keep"), base, tmp_path / "run")
    first, second = lines(tmp_path / "run")
    assert first["failed"] == 4 and "failed" not in second
    (record,) = lines(tmp_path / "run", "failures.jsonl")
    assert record == {"step": 1, "dialogues": 4, "reasons": {"status 400: refused": 4}}


def test_the_command_shows_what_was_left_out(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlver.train.runs.training_run.training_users", lambda config: {"vanilla": Moody({0})})
    few = ("--set", "batch=4", "--set", "group=2", "--set", "max_tokens=6", "--set", "zero_variance=keep")
    assert main(["train", "--policy", str(base), "--steps", "2", *few, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().err
    assert "2 left out" in shown and str(tmp_path / "run" / "failures.jsonl") in shown


def test_a_refill_that_fails_leaves_what_is_there(speakers: Any, words: Any) -> None:
    """A step teaches nothing only if all of its dialogues failed."""

    class Flat(Moody):
        """The first group teaches nothing, the second does, and those that would take the first one's place fail."""

        async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
            reaction = await super().react(dialogue, seed)
            return Reaction(change=10, utterance="Bye.") if self.seeds.index(seed) == 0 else reaction

    trainer = make(speakers, words, Flat(set(range(2, 99))), group=4, zero_variance="refill", refills=2)
    metrics, dialogues = trainer.step(0)
    assert len(dialogues) == 4 and metrics["failed"] == 8 and trainer.failures == ["status 400: refused"] * 8
    with pytest.raises(RlverError, match=r"nothing of step 1 can be learned from.*status 400"):
        make(speakers, words, Moody(set(range(99)))).step(0)
