"""Metrics of dialogues: means, and what is left out where users report no acts."""

from __future__ import annotations

import pytest

from rlver.core.dialogue import Dialogue, Reaction, Reply, TokenRecord
from rlver.core.emotion import PRESETS
from rlver.core.profile import Intention
from rlver.evaluation.dialogue_metrics import dialogue_metrics
from rlver.stories.generate import generate
from rlver.users.embedded.acts import NEED_ACTS
from rlver.users.embedded.judge import suits

PROFILES = {profile.need: profile for profile in generate("en", "train", 40)}


def dialogue_of(intention: Intention, replies: list[tuple[str, float, tuple[str, ...]]]) -> Dialogue:
    """A dialogue with these replies, changes and acts. Replies have as many tokens as words."""
    dialogue = Dialogue(PROFILES[intention], PRESETS["sage"])
    dialogue.begin("Hello.")
    for text, change, acts in replies:
        tokens = TokenRecord([1], [2] * len(text.split()), [0.0] * len(text.split()))
        dialogue.reply(Reply(text, text, tokens=tokens))
        dialogue.react(Reaction(change=change, utterance="And then it rained.", acts=acts))
    return dialogue


def test_means_over_dialogues_and_replies() -> None:
    first = dialogue_of(Intention.PRAISE, [("I see.", 10, ()), ("I see.", 10, ()), ("How are you?", -10, ())])
    second = dialogue_of(Intention.LISTEN, [("Go on.", -10, ())])
    metrics = dialogue_metrics([first, second])
    assert metrics["reward"] == pytest.approx((0.5 + 0.3) / 2) and metrics["turns"] == 2
    assert (metrics["success"], metrics["failure"], metrics["bad_format"]) == (0, 0, 0)
    assert metrics["tokens_per_reply"] == (2 + 2 + 3 + 2) / 4 and metrics["repeated_replies"] == 1 / 4
    assert (metrics["score/listen"], metrics["score/praise"]) == pytest.approx((30, 50))


def test_fit_is_reported_for_users_that_report_acts() -> None:
    act = next(act for act in NEED_ACTS if suits(act, Intention.PRAISE))
    other = next(act for act in NEED_ACTS if not suits(act, Intention.PRAISE))
    judged = dialogue_of(Intention.PRAISE, [("Well done.", 10, (act,)), ("Calm down.", -10, (other, act))])
    silent = dialogue_of(Intention.PRAISE, [("Well done.", 10, ())])
    assert dialogue_metrics([judged])["fit"] == pytest.approx(2 / 3)
    assert "fit" not in dialogue_metrics([silent])
    assert dialogue_metrics([silent], always_fit=True)["fit"] == 0
