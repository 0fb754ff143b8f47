"""Which words of a text say what it is about."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from rlver.core.data import read_text, read_yaml
from rlver.core.profile import Language
from rlver.text.words import words

_HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")


@cache
def stopwords(language: Language) -> frozenset[str]:
    """Words that say nothing about a story."""
    return frozenset(read_yaml("rlver.users.embedded", f"data/lexicon.{language}.yaml")["stopwords"])


@cache
def everyday(language: Language) -> frozenset[str]:
    """Everyday words. They do not show which story a reply is about."""
    return frozenset(words(read_text("rlver.users.embedded", f"data/reference.{language}.txt"), language))


@lru_cache(maxsize=50_000)
def word_set(text: str, language: Language) -> frozenset[str]:
    """All words and punctuation marks of a text."""
    return frozenset(words(text, language))


@lru_cache(maxsize=50_000)
def content_words(text: str, language: Language) -> frozenset[str]:
    """Content words of a text (English only)."""
    return frozenset([w for w in word_set(text, language) - stopwords(language) if len(w) > 2 and w.isalpha()])


def han_runs(text: str, size: int) -> frozenset[str]:
    """All runs of `size` Chinese characters."""
    return frozenset([run[i : i + size] for run in _HAN_RUN.findall(text) for i in range(len(run) - size + 1)])


@lru_cache(maxsize=20_000)
def plain_words(text: str, language: Language) -> tuple[str, ...]:
    """The words of a text without punctuation marks."""
    return tuple([word for word in words(text, language) if word.isalnum() or "'" in word])


@lru_cache(maxsize=20_000)
def topic_words(text: str, language: Language) -> frozenset[str]:
    """Words that show what a text is about: content words (Chinese: character pairs) that are not everyday ones."""
    if language == "en":
        rare = word_set(text, language) - _common_words(language)
        return frozenset([w for w in rare if len(w) > 2 and w.isalpha()])
    return han_runs(text, 2) - _common_pairs()


@cache
def _common_words(language: Language) -> frozenset[str]:
    return everyday(language) | stopwords(language)


@cache
def _common_pairs() -> frozenset[str]:
    return han_runs(read_text("rlver.users.embedded", "data/reference.zh.txt"), 2)
