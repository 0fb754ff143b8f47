"""Credit: what turns earn adds up to what the dialogue earned."""

from __future__ import annotations

import pytest
from estimators import near, seeds
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from rlver.core.dialogue import Dialogue, Reaction, StopReason
from rlver.core.emotion import PRESETS
from rlver.stories.generate import generate
from rlver.train.credit import discount, returns, turn_rewards


@given(seed=seeds, gamma=st.floats(0, 1), turns=st.integers(1, 9))
def test_returns(seed: int, gamma: float, turns: int) -> None:
    rewards = default_rng(seed).normal(size=turns)
    expected = [sum(gamma ** (k - t) * rewards[k] for k in range(t, turns)) for t in range(turns)]
    assert returns(rewards.tolist(), gamma) == near(expected)


def test_discounts() -> None:
    """A final reward is not discounted, a mere change looks no further than its turn."""
    found = [discount(credit, 0.7) for credit in ("terminal", "change", "return", "turn")]  # type: ignore[arg-type]
    assert found == [1.0, 0.0, 0.7, 0.7]


def dialogue_of(preset: str, changes: list[float], breaks: bool) -> Dialogue:
    """A dialogue with these reactions, as far as it gets; `breaks` ends it with a broken format."""
    dialogue = Dialogue(generate("en", "train", 1)[0], PRESETS[preset], think=True)
    dialogue.begin("Hello.")
    for change in changes:
        dialogue.reply("<think>Plan.</think>Reply.")
        dialogue.react(Reaction(change=change, utterance="And then it rained."))
        if dialogue.stop is not None:
            return dialogue
    if breaks:
        dialogue.reply("No plan at all.")
    return dialogue


dialogues = st.builds(
    dialogue_of,
    st.sampled_from(sorted(PRESETS)),
    st.lists(st.sampled_from([-10.0, -5.0, 0.0, 5.0, 10.0]), min_size=1, max_size=9),
    st.booleans(),
)


@given(dialogue=dialogues)
def test_turn_rewards_telescope(dialogue: Dialogue) -> None:
    rewards = turn_rewards(dialogue, "turn")
    end = 0.0 if dialogue.stop is StopReason.BAD_FORMAT else dialogue.emotion
    assert len(rewards) == len(dialogue.turns)
    assert sum(rewards) == near((end - dialogue.preset.start) / 10)
    # The undiscounted return of a turn is all that it and the later ones moved.
    before = [dialogue.preset.start, *(turn.score for turn in dialogue.turns[:-1])]
    assert returns(rewards, 1.0) == near([(end - score) / 10 for score in before])


@given(dialogue=dialogues)
def test_terminal_credit_pays_at_the_end_alone(dialogue: Dialogue) -> None:
    *early, last = turn_rewards(dialogue, "terminal")
    assert early == [0.0] * (len(dialogue.turns) - 1)
    assert last == dialogue.reward
    assert returns([*early, last], 1.0) == [dialogue.reward] * len(dialogue.turns)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_broken_format_loses_all(preset: str) -> None:
    dialogue = dialogue_of(preset, [10.0, 10.0], breaks=True)
    start = PRESETS[preset].start
    assert turn_rewards(dialogue, "turn") == near([1.0, 1.0, -(start + 20) / 10])
    assert turn_rewards(dialogue, "terminal") == [0.0, 0.0, 0.0]
    assert sum(turn_rewards(dialogue_of(preset, [], breaks=True), "turn")) == near(-start / 10)
