"""The index of patterns finds exactly what trying every pattern finds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlver.core.data import read_text, read_yaml
from rlver.text.patterns import PatternIndex

PATTERNS = {
    "a": [r"\b(sorry|apolog\w+)\b", r"^no+$"],
    "b": [r"(?<!not )you.{0,6}(right|ri[sg]ht)", r"don.?t|isn't"],
    "c": [r"(ab|cd)?e{2,}", r"[xyz]\d", r"(?!foo)\w*bar"],
    "e": [r"(?-i:Go|Stop) now", r"hm+ then|[0-4]\)", r"\d{1,2}[.)]", r"so (very )?(sad|bad|mad)"],
    "d": [r"\W{3}|听.{0,3}(说|见)"],
}


def naive(groups: dict[str, list[str]], text: str) -> tuple[str, ...]:
    return tuple(n for n, patterns in groups.items() if any(re.search(p, text, re.IGNORECASE) for p in patterns))


PIECES = ["Sorry", "apologies", "not ", "you", "Right", "rist", "don", "t", "'", " ", "EE", "x", "4", "foo", "bar"]
PIECES += ["go", "Go", " now", "hm", "m", " then", "3", ".", ")", "so ", "very ", "bad", "ſ", "İ", "ı"]
PIECES += ["no", "!!!", "听", "他说", "ab", "isn't"]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_the_index_agrees_with_trying_every_pattern(parts: list[str]) -> None:
    text = "".join(parts)
    assert PatternIndex(PATTERNS).groups_in(text) == naive(PATTERNS, text)
    assert PatternIndex(PATTERNS, ["sorry you", "bar"]).groups_in(text) == naive(PATTERNS, text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_lexicon_is_read_as_it_is_written(language: str) -> None:
    groups = read_yaml("rlver.users.embedded", f"data/lexicon.{language}.yaml")["acts"]
    lines = read_text("rlver.users.embedded", f"data/reference.{language}.txt").split("\n")[::7]
    lines += [
        s for group in read_yaml("rlver.users.embedded", "data/act_examples.yaml")[language].values() for s in group[:3]
    ]
    index = PatternIndex(groups, lines[:20])
    for line in lines:
        assert index.groups_in(line) == naive(groups, line)


def test_patterns_without_required_strings_are_always_tried() -> None:
    assert PatternIndex({"a": [r"^\w$"], "b": [r"x?"]}).groups_in("q") == ("a", "b")
