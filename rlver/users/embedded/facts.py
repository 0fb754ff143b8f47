"""Which facts of a story a reply takes up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rlver.core.profile import Fact, Language
from rlver.users.embedded.vocabulary import content_words, everyday, han_runs, stopwords, word_set


def short_name(handle: str, language: Language) -> str:
    """The shortest way to refer to a fact's thing: "the ovens" for "the bread ovens", if no other ovens could be
    meant; the whole handle otherwise."""
    qualified = handle.split()
    if language == "zh" or len(qualified) < 3 or qualified[-1].lower() in everyday(language):
        return handle
    return f"{qualified[0]} {qualified[-1]}"


class _Signs(NamedTuple):
    """By what a reply shows that it takes up a fact."""

    name: frozenset[str]
    """All of these words (Chinese: the one string) name the fact's thing."""
    content: frozenset[str]
    """Three of these words (Chinese: one of these runs of four characters) are the fact's own."""


@dataclass(frozen=True, slots=True, eq=False)
class _AllSigns:
    """Those of all facts of a story; one object a story, so that a cache need not compare what it holds."""

    facts: tuple[_Signs, ...]


def takes_up(reply: str, fact: Fact, language: Language) -> bool:
    """Whether the reply takes up the fact: the short name of its thing, or enough of its own words."""
    return bool(taken_up([reply], (fact,), language)[0])


def taken_up(replies: Sequence[str], facts: tuple[Fact, ...], language: Language) -> list[frozenset[int]]:
    """Which of the facts, by index, each reply takes up."""
    signs = _signs(tuple([fact.say for fact in facts]), tuple([fact.handle for fact in facts]), language)
    return [_taken_up(reply, signs, language) for reply in replies]


@lru_cache(maxsize=50_000)
def _taken_up(reply: str, signs: _AllSigns, language: Language) -> frozenset[int]:
    if language == "zh":
        runs = {reply[i : i + 4] for i in range(len(reply) - 3)}
        return frozenset(
            [
                i
                for i, (name, content) in enumerate(signs.facts)
                if any([handle in reply for handle in name]) or not content.isdisjoint(runs)
            ]
        )
    said = word_set(reply, language)
    return frozenset(
        [i for i, (name, content) in enumerate(signs.facts) if (name and name <= said) or len(content & said) >= 3]
    )


@lru_cache(maxsize=5_000)
def _signs(says: tuple[str, ...], handles: tuple[str, ...], language: Language) -> _AllSigns:
    if language == "en":
        names = [content_words(short_name(handle, language), language) for handle in handles]
        contents = [content_words(say, language) for say in says]
    else:
        names = [frozenset({handle} - {""}) for handle in handles]
        contents = [han_runs(say, 4) - stopwords(language) for say in says]
    return _AllSigns(tuple(map(_Signs, names, contents)))
