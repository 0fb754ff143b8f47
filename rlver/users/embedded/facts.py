"""Which facts of a story a reply mentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rlver.core.profile import Fact, Language
from rlver.users.embedded.vocabulary import content_words, everyday, han_runs, stopwords, word_set


def short_name(handle: str, language: Language) -> str:
    """A shorter form of a fact's handle: "the ovens" for "the bread ovens".

    The whole handle, if its last word is an everyday one and could mean something else.
    """
    parts = handle.split()
    if language == "zh" or len(parts) < 3 or parts[-1].lower() in everyday(language):
        return handle
    return f"{parts[0]} {parts[-1]}"


class _Signs(NamedTuple):
    """Words that show that a reply mentions a fact."""

    name: frozenset[str]
    """Words of the handle, all of which must occur (Chinese: the handle as a single string)."""
    content: frozenset[str]
    """Words of the fact, any three of which are enough (Chinese: runs of four characters, of which one is enough)."""


@dataclass(frozen=True, slots=True, eq=False)
class _StorySigns:
    """The signs of all facts of a story. It is compared by identity, so that cache lookups are quick."""

    facts: tuple[_Signs, ...]


def mentioned_facts(replies: Sequence[str], facts: tuple[Fact, ...], language: Language) -> list[frozenset[int]]:
    """Indices of the facts that each reply mentions, by the short name of the handle or by enough words of the fact."""
    signs = _signs(tuple([fact.say for fact in facts]), tuple([fact.handle for fact in facts]), language)
    return [_mentioned(reply, signs, language) for reply in replies]


@lru_cache(maxsize=50_000)
def _mentioned(reply: str, signs: _StorySigns, language: Language) -> frozenset[int]:
    if language == "zh":
        runs = {reply[i : i + 4] for i in range(len(reply) - 3)}
        return frozenset(
            [
                i
                for i, (name, content) in enumerate(signs.facts)
                if any([handle in reply for handle in name]) or not content.isdisjoint(runs)
            ]
        )
    own = word_set(reply, language)
    return frozenset(
        [i for i, (name, content) in enumerate(signs.facts) if (name and name <= own) or len(content & own) >= 3]
    )


@lru_cache(maxsize=5_000)
def _signs(says: tuple[str, ...], handles: tuple[str, ...], language: Language) -> _StorySigns:
    if language == "en":
        names = [content_words(short_name(handle, language), language) for handle in handles]
        contents = [content_words(say, language) for say in says]
    else:
        names = [frozenset({handle} - {""}) for handle in handles]
        contents = [han_runs(say, 4) - stopwords(language) for say in says]
    return _StorySigns(tuple(map(_Signs, names, contents)))
