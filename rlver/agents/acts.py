"""Which dialogue acts a reply performs, and in what manner: a readable lexicon of regular expressions.

The acts are the eight that answer a hidden intention, and five more that supporters use (SAGE's strategy groups,
arXiv 2505.02847, appendix, merged to what a reader can tell apart).
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

from rlver.core.data import read_yaml
from rlver.core.profile import Intention, Language
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
    first: tuple[str, ...] = ()
    """Styles of the first sentence."""


@cache
def lexicon(language: Language) -> dict[str, dict[str, re.Pattern[str]]]:
    """The compiled lexicon: {"acts": {act: pattern}, "style": {style: pattern}}."""
    data = read_yaml("rlver.agents", f"data/lexicon.{language}.yaml")
    return {
        group: {
            name: re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
            for name, patterns in data[group].items()
        }
        for group in ("acts", "style")
    }


@lru_cache(maxsize=100_000)
def _tag_sentence(sentence: str, language: Language) -> tuple[tuple[str, ...], tuple[str, ...]]:
    patterns = lexicon(language)
    return (
        tuple(act for act, pattern in patterns["acts"].items() if pattern.search(sentence)),
        tuple(style for style, pattern in patterns["style"].items() if pattern.search(sentence)),
    )


def tag(reply: str, language: Language) -> Tags:
    """Tag every sentence of a reply."""
    said = sentences(reply)
    tags = Tags({}, {}, len(said), _tag_sentence(said[0], language)[1] if said else ())
    for sentence in said:
        acts, styles = _tag_sentence(sentence, language)
        for name in acts:
            tags.acts[name] = tags.acts.get(name, 0) + 1
        for name in styles:
            tags.styles[name] = tags.styles.get(name, 0) + 1
    return tags
