"""Which words of a text tell something about its matter."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from rlver.core.data import read_text, read_yaml
from rlver.core.profile import Language
from rlver.text.words import words

_HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")


@cache
def stopwords(language: Language) -> frozenset[str]:
    """Words that tell nothing about a story."""
    return frozenset(read_yaml("rlver.users.embedded", f"data/lexicon.{language}.yaml")["stopwords"])


@cache
def everyday(language: Language) -> frozenset[str]:
    """Words that anybody uses: that a reply has them says nothing about whose story it is."""
    return frozenset(words(read_text("rlver.users.embedded", f"data/reference.{language}.txt"), language))


@lru_cache(maxsize=50_000)
def word_set(text: str, language: Language) -> frozenset[str]:
    """Its words and marks."""
    return frozenset(words(text, language))


@lru_cache(maxsize=50_000)
def content_words(text: str, language: Language) -> frozenset[str]:
    """Words that carry content (English only)."""
    return frozenset([w for w in word_set(text, language) - stopwords(language) if len(w) > 2 and w.isalpha()])


def han_runs(text: str, size: int) -> frozenset[str]:
    """All runs of so many Chinese characters."""
    return frozenset([run[i : i + size] for run in _HAN_RUN.findall(text) for i in range(len(run) - size + 1)])


@lru_cache(maxsize=20_000)
def plain_words(text: str, language: Language) -> tuple[str, ...]:
    """Its words without the marks between them."""
    return tuple([word for word in words(text, language) if word.isalnum() or "'" in word])


@lru_cache(maxsize=20_000)
def own_words(text: str, language: Language) -> frozenset[str]:
    """What marks a text as being about its matter: content words (Chinese: pairs of characters) nobody else uses."""
    if language == "en":
        rare = word_set(text, language) - _said_by_anyone(language)
        return frozenset([w for w in rare if len(w) > 2 and w.isalpha()])
    return han_runs(text, 2) - _everyday_pairs()


@cache
def _said_by_anyone(language: Language) -> frozenset[str]:
    return everyday(language) | stopwords(language)


@cache
def _everyday_pairs() -> frozenset[str]:
    return han_runs(read_text("rlver.users.embedded", "data/reference.zh.txt"), 2)
