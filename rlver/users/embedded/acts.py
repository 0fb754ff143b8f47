"""The dialogue acts and styles of a reply, recognised with a readable lexicon of regular expressions.

Eight acts answer one hidden intention each. Five more are common among supporters (the strategy groups of SAGE,
arXiv 2505.02847, appendix, merged to those that a reader can tell apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from rlver.core.data import read_text, read_yaml
from rlver.core.profile import Intention, Language
from rlver.text.patterns import PatternIndex
from rlver.text.words import sentences

NEED_ACTS = tuple(intention.value for intention in Intention)
"""Acts that answer one of the eight hidden intentions, under the intention's name."""
OTHER_ACTS = ("comfort", "refer", "disclose", "restate", "question")
STYLES = ("generic", "cold", "warm", "lecture", "unsafe", "maybe", "tip", "sounds_like")


class Tags(NamedTuple):
    """Acts and styles of one reply, each with the number of sentences that show it."""

    acts: dict[str, int]
    styles: dict[str, int]
    sentences: int = 0
    """Number of sentences of the reply."""
    first: tuple[str, ...] = ()
    """Styles of the first sentence."""


@cache
def lexicon(language: Language) -> PatternIndex:
    """The compiled lexicon of acts and styles. No act has the name of a style."""
    data = read_yaml("rlver.users.embedded", f"data/lexicon.{language}.yaml")
    sample = read_text("rlver.users.embedded", f"data/reference.{language}.txt").split("\n")[:200]
    return PatternIndex(data["acts"] | data["style"], sample)


@lru_cache(maxsize=100_000)
def _tag_sentence(sentence: str, language: Language) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Acts and styles of one sentence."""
    names = lexicon(language).groups_in(sentence)
    if not names:
        return (), ()
    return tuple(name for name in names if name not in STYLES), tuple(name for name in names if name in STYLES)


def tag(reply: str, language: Language) -> Tags:
    """Tag every sentence of a reply."""
    return tag_sentences(sentences(reply), language)


def tag_sentences(parts: Sequence[str], language: Language) -> Tags:
    """Tag the sentences of a reply."""
    tags = Tags({}, {}, len(parts), _tag_sentence(parts[0], language)[1] if parts else ())
    for sentence in parts:
        acts, styles = _tag_sentence(sentence, language)
        for name in acts:
            tags.acts[name] = tags.acts.get(name, 0) + 1
        for name in styles:
            tags.styles[name] = tags.styles.get(name, 0) + 1
    return tags
