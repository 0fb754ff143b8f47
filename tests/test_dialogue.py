"""The dialogue: when it ends, what it earns and what the policy sees, under every preset."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply, StopReason, TokenRecord, is_farewell
from rlver.core.emotion import PRESETS, Band, band, get_preset
from rlver.core.errors import RlverError, Unreadable
from rlver.core.profile import Profile
from rlver.stories.generate import generate

# preset: start, clamp, floor, ceiling, judged replies, ends at 100
TABLE = {
    "sage": (40, 10, 0, 100, 9, True),
    "release": (30, inf, -inf, 100, 9, False),
    "paper": (40, 10, 0, 100, 8, True),
}
PROFILE: Profile = generate("en", "train", 1)[0]

presets = st.sampled_from(sorted(TABLE))


def begin(preset: str = "sage", think: bool = False) -> Dialogue:
    """A dialogue whose user has just spoken."""
    dialogue = Dialogue(PROFILE, PRESETS[preset], think)
    dialogue.begin("Hello.")
    return dialogue


def step(dialogue: Dialogue, change: float, utterance: str = "And then?", raw: str = "I see.") -> None:
    """One reply and the reaction to it."""
    assert dialogue.reply(raw)
    dialogue.react(Reaction(change=change, utterance=utterance))


def run(dialogue: Dialogue, *changes: float) -> Dialogue:
    """Play changes until they or the dialogue end."""
    for change in changes:
        if dialogue.stop is None:
            step(dialogue, change)
    return dialogue


@pytest.mark.parametrize("name", TABLE)
def test_presets_hold_the_disputed_constants(name: str) -> None:
    preset = get_preset(name)
    constants = (preset.start, preset.clamp, preset.floor, preset.ceiling, preset.replies, preset.ends_at_success)
    assert constants == TABLE[name]
    assert preset.name == name and set(PRESETS) == set(TABLE)
    with pytest.raises(ValidationError):
        preset.start = 0


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(RlverError, match="unknown preset 'rlhf'; choose one of sage, release, paper"):
        get_preset("rlhf")


@given(name=presets, score=st.floats(0, 100), change=st.floats(-1000, 1000))
def test_no_reply_moves_the_score_further_than_the_preset_allows(name: str, score: float, change: float) -> None:
    _, clamp, floor, ceiling, _, _ = TABLE[name]
    after = PRESETS[name].apply(score, change)
    assert floor <= after <= ceiling
    assert abs(after - score) <= clamp + 1e-9
    if abs(change) <= clamp and floor <= score + change <= ceiling:
        assert after == score + change


@pytest.mark.parametrize("name", TABLE)
def test_the_turn_limit_is_exact(name: str) -> None:
    replies = TABLE[name][4]
    dialogue = begin(name)
    for number in range(1, replies + 1):
        assert dialogue.stop is None
        step(dialogue, 0)
        assert len(dialogue.turns) == number
    assert dialogue.stop is StopReason.TURN_LIMIT
    assert dialogue.turns[-1].reaction is not None


@pytest.mark.parametrize(
    ("name", "changes", "stop", "score"),
    [
        ("sage", [10] * 6, StopReason.DELIGHTED, 100),
        ("sage", [50] * 6, StopReason.DELIGHTED, 100),
        ("sage", [-10, -10, -10], None, 10),
        ("sage", [-10, -10, -10, -1], StopReason.FED_UP, 9),
        ("sage", [-50] * 4, StopReason.FED_UP, 0),
        ("release", [70], None, 100),
        ("release", [500, -50], None, 50),
        ("release", [70] * 9, StopReason.TURN_LIMIT, 100),
        ("release", [-29], None, 1),
        ("release", [-30], StopReason.FED_UP, 0),
        ("release", [-80], StopReason.FED_UP, -50),
        ("paper", [10] * 6, StopReason.DELIGHTED, 100),
        ("paper", [-10, -10, -10, -9], None, 1),
        ("paper", [-10] * 4, StopReason.FED_UP, 0),
    ],
)
def test_where_the_emotion_ends_the_dialogue(
    name: str, changes: list[float], stop: StopReason | None, score: float
) -> None:
    dialogue = run(begin(name), *changes)
    assert (dialogue.stop, dialogue.emotion) == (stop, score)
    assert dialogue.turns[-1].score == score


def test_every_stop_reason_is_reached_and_explained() -> None:
    farewell, broken, failed, unread = begin(), begin(), begin(), begin()
    step(farewell, 5, "Thanks, goodbye!")
    assert not broken.reply("<think>oops</think>")
    failed.fail("no answer")
    unread.fail(Unreadable("no number"))
    left_out = [broken, failed, unread]
    ended = [run(begin(), *[10] * 6), run(begin(), *[-10] * 4), farewell, run(begin(), *[0] * 9), *left_out]
    assert [reason for reason in StopReason if not reason.scored] == [StopReason.ERROR, StopReason.UNREADABLE]
    assert [dialogue.stop for dialogue in ended] == list(StopReason)
    assert len({reason.meaning for reason in StopReason}) == len(StopReason)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("ending", ["delighted", "fed_up", "farewell", "turn_limit", "bad_format", "error"])
def test_no_reply_is_taken_after_the_end(name: str, ending: str) -> None:
    dialogue = begin(name, think=True)
    dialogue.stop = StopReason(ending)
    with pytest.raises(ValueError, match="ended"):
        dialogue.reply("<think>a</think>b")
    assert dialogue.turns == []


def test_a_reply_waits_for_the_reaction() -> None:
    dialogue = begin()
    assert dialogue.reply("First.")
    with pytest.raises(ValueError, match="judged"):
        dialogue.reply("Second.")


@pytest.mark.parametrize(
    "utterance",
    [
        "Bye",
        "Thank you, bye-bye!",
        "That helps. Goodbye.",
        "good bye",
        "See you later.",
        "I feel better, see you!",
        "FAREWELL…",
        "再见",
        "谢谢你，拜拜！",
        "我先走了，回头见。",
        "后会有期，再会～",
        "好多了，再见啦。",
        "我去睡了，再见了！",
    ],
)
def test_farewells(utterance: str) -> None:
    assert is_farewell(utterance)
    dialogue = begin()
    step(dialogue, 5, utterance)
    assert dialogue.stop is StopReason.FAREWELL and dialogue.emotion == 45


@pytest.mark.parametrize(
    "utterance",
    [
        "",
        "Bye-laws are hard.",
        "He said goodbye and I cried.",
        "I never want to see you.",
        "We stand by",
        "She sang a lullabye",
        "The goodbye letter is still here.",
        "Goodbye? I do not know.",
        "再见面的时候我不知道说什么。",
        "他说完再见，就把门关上了。",
        "那句拜拜让我很难受。",
    ],
)
def test_near_misses_are_no_farewells(utterance: str) -> None:
    assert not is_farewell(utterance)


@given(name=presets, changes=st.lists(st.integers(-40, 40), min_size=1, max_size=12))
def test_reward_success_and_failure_follow_the_final_score(name: str, changes: list[int]) -> None:
    dialogue = run(begin(name), *changes)
    score = max(0.0, dialogue.emotion)
    assert dialogue.reward == pytest.approx(score / 100) and 0 <= dialogue.reward <= 1
    assert dialogue.success == (score >= 100) and dialogue.failure == (score < 10)
    assert len(dialogue.turns) <= TABLE[name][4]


@given(score=st.floats(0, 100))
def test_bands_cut_where_the_benchmark_cuts(score: float) -> None:
    edges = {Band.S: (100, inf), Band.A: (70, 100), Band.B: (40, 70), Band.C: (10, 40), Band.F: (-inf, 10)}
    low, high = edges[band(score)]
    assert low <= score < high


def test_the_policy_never_sees_its_thoughts_again() -> None:
    dialogue = begin(think=True)
    step(dialogue, 5, "Go on.", "<think>She is sad.</think>That hurts.")
    step(dialogue, 5, "Yes.", " <think>Ask.\n</think>\nWhat then? ")
    assert [(message.role, message.content) for message in dialogue.messages()] == [
        ("user", "Hello."),
        ("assistant", "That hurts."),
        ("user", "Go on."),
        ("assistant", "What then?"),
        ("user", "Yes."),
    ]
    assert [turn.thought for turn in dialogue.turns] == ["She is sad.", "Ask."]


@pytest.mark.parametrize(
    ("think", "raw"), [(True, "No thought."), (True, "<think>No reply.</think>"), (False, "<think>a</think>b")]
)
def test_a_broken_format_earns_nothing(think: bool, raw: str) -> None:
    dialogue = begin(think=think)
    good = "<think>a</think>b" if think else "b"
    for _ in range(5):
        step(dialogue, 10, raw=good)
    assert dialogue.reward == 0.9
    assert not dialogue.reply(raw)
    assert dialogue.stop is StopReason.BAD_FORMAT
    assert dialogue.reward == 0 and dialogue.failure and not dialogue.success
    assert dialogue.turns[-1].reaction is None and dialogue.turns[-1].reply == ""


def test_told_facts_are_kept() -> None:
    dialogue = Dialogue(PROFILE, PRESETS["sage"])
    dialogue.begin(Opening("Hello.", fact=2))
    for fact in (0, None, 5):
        assert dialogue.reply("I see.")
        dialogue.react(Reaction(change=0, utterance="Well.", fact=fact))
    assert dialogue.told_facts == {0, 2, 5}


def test_callbacks_are_called_once_when_the_dialogue_ends() -> None:
    calls: list[StopReason | None] = []
    dialogue = begin()
    dialogue.on_end(lambda: calls.append(dialogue.stop))
    step(dialogue, 5)
    assert calls == []
    dialogue.fail("no answer")
    dialogue.fail("and again")
    assert calls == [StopReason.ERROR]


def test_transcripts_leave_token_ids_out() -> None:
    dialogue = begin()
    tokens = TokenRecord([1, 2, 3], [4, 5], [-0.5, -0.25], lead=1)
    assert dialogue.reply(Reply.parse("First.", False, tokens))
    assert dialogue.turns[0].tokens is tokens and tokens.context_ids == [1, 2]
    assert "tokens" not in dialogue.turns[0].model_dump() and "tokens" not in dialogue.turns[0].model_dump_json()
