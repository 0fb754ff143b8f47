"""Every cue that moves the embedded user's emotion has its words in both languages."""

from __future__ import annotations

import pytest

from rlver.core.data import read_text, read_yaml
from rlver.core.dialogue import Turn
from rlver.core.emotion import get_preset
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.evaluation.report import reasons_text
from rlver.rollout import play
from rlver.stories import benchmark_profiles
from rlver.users.calibration.redteam import TacticPolicy, cheats, honest
from rlver.users.embedded.acts import NEED_ACTS, OTHER_ACTS
from rlver.users.embedded.explanations import explanation
from rlver.users.embedded.judge import STATE
from rlver.users.embedded.user import EmbeddedUser
from rlver.users.embedded.weights import default_weights

TEXTS = read_yaml("rlver.users.embedded", "data/cues.yaml")


@pytest.mark.parametrize(("language", "user_type"), [("en", "vanilla"), ("zh", "challenging")])
def test_every_cue_in_dialogues_has_an_explanation(language: Language, user_type: UserType) -> None:
    profiles = benchmark_profiles(language)[:4]
    policies = cheats(language, user_type) | honest(language)
    policies.pop("greedy choice")  # slow, and its replies are those of the others
    reasons = set()
    for name, say in policies.items():
        user = EmbeddedUser(language, user_type)
        for dialogue in play(profiles, TacticPolicy(name, say), user, get_preset("sage")):
            reasons |= {reason.cue for turn in dialogue.turns if turn.reaction for reason in turn.reaction.reasons}
    assert len(reasons) > 30 and reasons <= set(TEXTS)


def test_every_cue_that_has_weights_has_an_explanation() -> None:
    known = {*STATE, *NEED_ACTS, *OTHER_ACTS, *default_weights().shapes}
    assert known <= set(TEXTS)


def test_no_explanation_is_left_over() -> None:
    judge = read_text("rlver.users.embedded", "judge.py")
    acts = {*NEED_ACTS, *OTHER_ACTS}
    assert [cue for cue in TEXTS if f'"{cue}"' not in judge and cue not in acts] == []
    assert all(set(words) == {"en", "zh"} for words in TEXTS.values())
    assert explanation("warm", "en") == "its tone is warm" and explanation("other", "zh") == "other"


def test_reasons_add_up_to_the_change() -> None:
    (dialogue,) = play(benchmark_profiles("en")[:1], TacticPolicy("x", lambda *_: "Go away."), EmbeddedUser("en"),
                       get_preset("sage"))  # fmt: skip
    turns = [*dialogue.turns, Turn(raw="<think>", score=0)]
    shown = reasons_text(turns, 40, "en").plain
    block = shown.partition("2. You")[0].splitlines()
    assert block[0] == "1. You: Go away." and block[1].startswith("   Emotion 40 -> 30 (-10)")
    points = [float(line.split()[0]) for line in block if line.strip()[:1] in "+-" and line.strip()]
    assert len(points) == 6 and sum(points) == pytest.approx(-10, abs=0.3)  # each is shown with one decimal
    assert shown.rstrip().endswith("This reply was not judged.")
