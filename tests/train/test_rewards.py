"""A reward of one's own: what it replaces, how it is recorded, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_credit import dialogue_of
from toys import Toy, make, quick, same, weights_of

from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError
from rlver.train.credit import Reward, reward_name, turn_rewards
from rlver.train.runs.card import Subject, model_card
from rlver.train.runs.collapse import Collapsed
from rlver.train.runs.training_run import run
from rlver.train.trainer import Trainer

CREDITS = ("terminal", "change", "return", "turn")


def shortness(dialogue: Dialogue) -> float:
    """Short replies are good."""
    return -sum(len(turn.raw) for turn in dialogue.turns) / len(dialogue.turns)


def test_a_number_is_paid_at_the_last_turn_and_a_list_turn_by_turn() -> None:
    dialogue = dialogue_of("sage", [10.0, -10.0, 5.0], breaks=False)
    for credit in CREDITS:
        assert turn_rewards(dialogue, credit, lambda _: 0.7) == [0.0, 0.0, 0.7]  # type: ignore[arg-type]
        assert turn_rewards(dialogue, credit, lambda _: np.float32(2)) == [0.0, 0.0, 2.0]  # type: ignore[arg-type]
        assert turn_rewards(dialogue, credit, lambda d: [turn.score for turn in d.turns]) == [50, 40, 45]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ([1.0, 2.0], "a list of 2 for a dialogue of 3 turns"),
        ([], "a list of 0"),
        (float("nan"), "rewards must be finite"),
        ([1.0, float("inf"), 0.0], "rewards must be finite"),
        ("good", "must return one number"),
        (None, "must return one number"),
        ([1.0, None, 2.0], "must return one number"),
    ],
    ids=str,
)
def test_a_wrong_reward_is_named(result: Any, sentence: str) -> None:
    dialogue = dialogue_of("sage", [10.0, -10.0, 5.0], breaks=False)

    def mine(_: Dialogue) -> Any:
        return result

    with pytest.raises(RlverError) as error:
        turn_rewards(dialogue, "turn", mine)
    assert sentence in str(error.value) and dialogue.profile.id in str(error.value)
    assert "test_a_wrong_reward_is_named.<locals>.mine" in str(error.value)


def test_the_usual_reward_as_a_reward_of_ones_own_changes_nothing(speakers: Any, words: Any) -> None:
    """Neither as a number with terminal credit nor as a list with the others, imitation included."""
    for credit in CREDITS:
        usual = make(speakers, words, credit=credit, lr=1e-3, imitation=0.3 if credit == "terminal" else 0.0)
        own = Trainer(
            usual.config,
            make(speakers, words).model,
            words,
            Toy(),
            reward=(lambda d: d.reward) if credit == "terminal" else (lambda d, credit=credit: turn_rewards(d, credit)),
        )
        (expected, _), (metrics, dialogues) = usual.step(0), own.step(0)
        assert torch.equal(weights_of(usual.model), weights_of(own.model))
        rewards = [sum(turn_rewards(dialogue, credit)) for dialogue in dialogues]
        assert metrics.pop("custom_reward") == pytest.approx(np.mean(rewards))
        assert metrics == expected


def test_what_it_rewards_becomes_more_frequent(speakers: Any, words: Any) -> None:
    config = make(speakers, words, credit="terminal", lr=1e-2, batch=16).config
    trainer = Trainer(config, make(speakers, words).model, words, Toy(), reward=shortness)
    steps = [trainer.step(step)[0] for step in range(12)]
    assert np.mean([metrics["custom_reward"] for metrics in steps[-3:]]) > steps[0]["custom_reward"] + 1
    assert all(0 <= metrics["reward"] <= 1 for metrics in steps), "the emotion is still reported"


def test_it_is_recorded_and_needed_to_go_on(base: Path, tmp_path: Path) -> None:
    run(quick(base), base, tmp_path / "whole", reward=shortness)
    run(quick(base, steps=2), base, tmp_path / "half", reward=shortness)
    described = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    assert described["reward"] == reward_name(shortness) == "test_rewards.shortness"
    for reward in (None, lambda dialogue: 0.0):
        with pytest.raises(RlverError, match=r"reward: 'test_rewards\.shortness' -> "):
            run(quick(base), base, tmp_path / "half", resume=True, reward=reward)
    run(quick(base), base, tmp_path / "half", resume=True, reward=shortness)
    assert same(tmp_path / "whole", tmp_path / "half", ("metrics.jsonl",))
    run(quick(base, steps=1), base, tmp_path / "usual")
    with pytest.raises(RlverError, match=r"reward: None -> 'test_rewards\.shortness'"):
        run(quick(base), base, tmp_path / "usual", resume=True, reward=shortness)


def test_an_emotion_that_falls_is_no_collapse_of_another_reward(base: Path, tmp_path: Path) -> None:
    config = quick(base, collapse_window=1, collapse_patience=1)

    def train(folder: Path, reward: Reward | None) -> None:
        user = Toy(liked="abcdefghijklmnopqrstuvwxyz", leaves=False)
        run(config, base, folder, users=user, reward=reward, on_step=lambda *_: setattr(user, "liked", ""))

    train(tmp_path / "other", shortness)
    with pytest.raises(Collapsed, match="reward fell"):
        train(tmp_path / "usual", None)


def test_the_card_does_not_speak_of_emotions(base: Path) -> None:
    note = {"algo": "grpo", "user": "embedded/vanilla/en/train@1", "language": "en"}
    subject = Subject("mine", note, {"config": {}, "reward": "mypackage.shortness"})
    card = model_card(subject, None, adapter=False, base_model=None)
    assert "on the custom reward `mypackage.shortness`" in card and "was its reward" not in card
