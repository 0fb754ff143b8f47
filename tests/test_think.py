"""The think-then-say format: properties of the function that decides what the user sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlver.core.think import CLOSE, OPEN, SplitReply, split

plain = st.text().filter(lambda text: OPEN not in text and CLOSE not in text and text.strip())
blank = st.text(alphabet=" \n\t", max_size=3)
soup = st.lists(st.sampled_from([OPEN, CLOSE, "<think", "think>", "</", "<", ">", " ", "\n", "a", "好"]), max_size=12)


@given(space=blank, thought=plain, reply=plain)
def test_a_thought_and_a_reply_are_taken_apart(space: str, thought: str, reply: str) -> None:
    assert split(f"{space}{OPEN}{thought}{CLOSE}{reply}", True) == SplitReply(thought.strip(), reply.strip())


@given(reply=plain)
def test_without_thinking_the_whole_text_is_the_reply(reply: str) -> None:
    assert split(reply, False) == SplitReply("", reply.strip())


@given(pieces=soup)
def test_no_tag_ever_reaches_the_user(pieces: list[str]) -> None:
    raw = "".join(pieces)
    tags = raw.count(OPEN), raw.count(CLOSE)
    assert (split(raw, False) is None) == (tags != (0, 0))
    parts = split(raw, True)
    if parts is None:
        return
    assert tags == (1, 1)
    assert parts.thought and parts.reply
    for text in parts:
        assert OPEN not in text and CLOSE not in text and text == text.strip()
    # No text is lost or added.
    assert raw.lstrip().startswith(OPEN)
    assert [part.strip() for part in raw.strip().removeprefix(OPEN).split(CLOSE)] == list(parts)


@given(pieces=soup, before=plain, after=plain)
def test_words_before_the_thought_break_the_format(pieces: list[str], before: str, after: str) -> None:
    assert split(f"{before}{OPEN}{''.join(pieces)}{CLOSE}{after}", True) is None


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "Just a reply.",
        "<think></think>Reply.",
        "<think> \n</think>Reply.",
        "<think>Thought.</think>",
        "<think>Thought.</think> \n",
        "<think>Thought. Reply.",
        "Thought.</think>Reply.",
        "<think>a</think><think>b</think>Reply.",
        "<think>a<think>b</think>Reply.",
        "<think>a</think>Reply.</think>",
        "<THINK>a</THINK>Reply.",
    ],
)
def test_broken_formats(raw: str) -> None:
    assert split(raw, True) is None
