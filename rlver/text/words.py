"""Words and sentences of English and Chinese text."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, islice

from rlver.core.profile import Language

_EN_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[^\w\s]")
_ASCII_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[0-9]+|[^\w\s]")
"""Matches the same as `_EN_WORD` in lower-case ASCII text, but faster."""
_ZH_WORD = re.compile(r"[\u4e00-\u9fff]|[A-Za-z]+|\d+|[^\w\s]")
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？\"”」)]*|[.!?。！？]+")
_HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")
_LATIN_RUN = re.compile(r"[A-Za-z]+")


@lru_cache(maxsize=20_000)
def words(text: str, language: Language) -> tuple[str, ...]:
    """Lower-case words and punctuation marks. Every Chinese character is a word of its own."""
    parts = [part.strip() for part in _SENTENCE.findall(text)]  # no word crosses the end of a sentence
    if len(parts) == 1:
        return _words_of(parts[0], language)
    return tuple(chain.from_iterable([_words_of(part, language) for part in parts]))


@lru_cache(maxsize=20_000)
def _words_of(sentence: str, language: Language) -> tuple[str, ...]:
    return tuple(_word(sentence, language).findall(_lower(sentence, language)))


def first_words(text: str, count: int, language: Language) -> tuple[str, ...]:
    """The first `count` words of a text, or all if it has fewer."""
    matches = _word(text, language).finditer(_lower(text, language))
    return tuple(match[0] for match in islice(matches, count))


def _word(text: str, language: Language) -> re.Pattern[str]:
    return _ZH_WORD if language == "zh" else _ASCII_WORD if text.isascii() else _EN_WORD


def _lower(text: str, language: Language) -> str:
    return text.lower() if language == "zh" else text.lower().replace("\u2019", "'")


def sentences(text: str) -> list[str]:
    """The sentences of a text, with their closing marks, without those that have no letter or digit."""
    return [part.strip() for part in _SENTENCE.findall(text) if any(map(str.isalnum, part))]


def script_share(text: str, language: Language) -> float:
    """Share of the letters that belong to the script of the language, in [0, 1]; 1 for a text without letters.

    A Latin word counts as one letter in Chinese, so that a name or a brand does not make a text foreign.
    """
    if language == "en" and text.isascii():
        return 1.0
    han = sum(map(len, _HAN_RUN.findall(text)))
    latin_runs = _LATIN_RUN.findall(text)
    latin = sum(map(len, latin_runs)) if language == "en" else len(latin_runs)
    total = han + latin
    if total == 0:
        return 1.0
    return (latin if language == "en" else han) / total
