"""The curriculum: what it draws, what it learns, and that a resumed run draws the same."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Toy, configure, make, quick, same

from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.emotion import PRESETS
from rlver.core.profile import Intention
from rlver.stories.generate import generate
from rlver.train.curriculum import Curriculum, interpolate, systematic_sample
from rlver.train.runs.training_run import run
from rlver.train.trainer import Trainer


def ended_dialogue(success: bool) -> Dialogue:
    """A dialogue that ended well or badly."""
    dialogue = Dialogue(generate("en", "train", 1)[0], PRESETS["sage"], think=False)
    dialogue.begin("Hello.")
    while dialogue.stop is None:
        dialogue.reply("Reply.")
        dialogue.react(Reaction(change=10.0 if success else -10.0, utterance="And then it rained."))
    return dialogue


def test_a_schedule_is_straight_between_its_points() -> None:
    schedule = {10: 0.5, 0: 0.1, 20: 1.0}
    assert [interpolate(schedule, step) for step in (0, 5, 10, 15, 20, 99)] == pytest.approx(
        [0.1, 0.3, 0.5, 0.75, 1.0, 1.0]
    )
    assert interpolate({5: 0.2}, 0) == interpolate({5: 0.2}, 9) == 0.2


def test_a_schedule_mixes_the_users() -> None:
    curriculum = Curriculum(configure(curriculum="schedule", schedule={0: 0.0, 4: 1.0}))
    hard = [Counter(m.user_type for m in curriculum.draw(step, 8))["challenging"] for step in range(6)]
    assert hard == [0, 2, 4, 6, 8, 8]


@given(weights=st.lists(st.floats(0, 5), min_size=1, max_size=9).filter(any), count=st.integers(1, 60))
def test_systematic_sampling_draws_by_weight_up_to_one(weights: list[float], count: int) -> None:
    found = Counter(systematic_sample(range(len(weights)), weights, count, random.Random(0)))
    assert found.total() == count
    for i, weight in enumerate(weights):
        assert abs(found[i] - count * weight / sum(weights)) < 1 + 1e-6


def test_vanilla_users_come_first_then_those_who_can_be_learned_from() -> None:
    curriculum = Curriculum(configure(curriculum="adaptive", curriculum_warmup=2, curriculum_floor=0.1))
    warm = curriculum.draw(0, 16)
    assert {m.user_type for m in warm} == {"vanilla"}
    assert Counter(m.profile.need for m in warm) == dict.fromkeys(Intention, 2)
    # Vanilla users are delighted always, but those whose intention is `listen` half the time; challenging ones never.
    for m in warm:
        curriculum.observe([(m, [ended_dialogue(True), ended_dialogue(m.profile.need is not Intention.LISTEN)])])
    weights = {(u, n): curriculum.weight(u, n, 2) for u in ("vanilla", "challenging") for n in Intention}  # type: ignore[arg-type]
    assert weights["vanilla", Intention.LISTEN] == 1.0
    assert set(weights.values()) == {1.0, 0.1}
    met = Counter((m.user_type, m.profile.need) for step in range(2, 12) for m in curriculum.draw(step, 25))
    assert met["vanilla", Intention.LISTEN] == pytest.approx(250 / 2.5, abs=10)
    assert min(met.values()) > 0 and len(met) == 16


def test_rates_are_remembered() -> None:
    curriculum = Curriculum(configure(curriculum="adaptive", curriculum_memory=0.5, curriculum_warmup=0))
    meeting = next(m for m in curriculum.draw(0, 16) if m.profile.need is Intention.PRAISE)
    kind = f"{meeting.user_type}/praise"
    for success, rate in ((True, 1.0), (False, 0.5), (False, 0.25)):
        curriculum.observe([(meeting, [ended_dialogue(success)])])
        assert curriculum.success_rates[kind] == rate
    assert curriculum.metrics() == {f"curriculum/{kind}": 0.25}
    other = Curriculum(curriculum.config)
    other.load_state_dict(curriculum.state_dict())
    assert other.draw(7, 12) == curriculum.draw(7, 12)


def test_profiles_of_a_file_are_drawn_by_intention() -> None:
    profiles = [p for p in generate("en", "train", 24) if p.need in (Intention.PRAISE, Intention.LISTEN)]
    curriculum = Curriculum(configure(curriculum="adaptive"), profiles)
    drawn = [m.profile for m in curriculum.draw(0, 4)]
    assert all(profile in profiles for profile in drawn)


def test_the_trainer_meets_both_kinds_of_users(speakers: Any, words: Any) -> None:
    kind, strict = (
        Toy(liked="abcdefghijklmnopqrstuvwxyz", leaves=False),
        Toy(liked="", leaves=False, turns=9),
    )
    trainer = make(speakers, words, curriculum="schedule", schedule={0: 0.5})
    trainer = Trainer(trainer.config, trainer.model, words, {"vanilla": kind, "challenging": strict})
    _, dialogues = trainer.step(0)
    rewards = [dialogue.reward for dialogue in dialogues]
    assert sum(reward > 0.6 for reward in rewards) == 4 and sum(reward < 0.2 for reward in rewards) == 4


def test_a_resumed_curriculum_goes_on(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"curriculum": "adaptive", "curriculum_warmup": 1, "batch": 8}
    run(quick(base, **settings), base, tmp_path / "whole")
    run(quick(base, **settings | {"steps": 2}), base, tmp_path / "half")
    run(quick(base, **settings), base, tmp_path / "half", resume=True)
    assert same(tmp_path / "whole", tmp_path / "half", ("metrics.jsonl",))
