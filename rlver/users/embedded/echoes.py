"""What a reply says again: its own words of before, or the user's."""

from __future__ import annotations

from functools import lru_cache

from rlver.core.profile import Language
from rlver.text.words import first_words, words
from rlver.users.embedded.vocabulary import plain_words

# Chinese has no spaces, so its spans are counted in characters: about twice as many for the same content.
# A run of the reply that is the user's own is at least twice as long as the n-grams, less one.
_RUN = {"en": 7, "zh": 12}
_GRAM = {"en": 4, "zh": 6}


@lru_cache(maxsize=20_000)
def _grams(text: str, language: Language, n: int) -> frozenset[int]:
    """Hashes of its sequences of `n` words: 64 bits, so that two sequences never share one in practice."""
    tokens = plain_words(text, language)
    return frozenset(map(hash, zip(*[tokens[i:] for i in range(n)], strict=False)))


@lru_cache(maxsize=20_000)
def first_three(text: str, language: Language) -> tuple[str, ...]:
    """The words that it begins with."""
    return first_words(text[:60], 3, language)


def repeats(reply: str, earlier: list[str], language: Language) -> tuple[float, int]:
    """Share of the reply's n-grams that stand in earlier replies, and how many of these hold nearly all of them;
    a short reply is compared as a whole."""
    n = _GRAM[language]
    own = new = _grams(reply, language, n)
    if not own:
        again = sum(words(reply, language) == words(other, language) for other in earlier)
        return float(again > 0), again
    again = 0
    for other in earlier:
        others = _grams(other, language, n)
        if not own.isdisjoint(others):
            new = new - others
            again += len(own & others) / len(own) > 0.8
    return (len(own) - len(new)) / len(own), again


def alike(reply: str, other: str, language: Language) -> float:
    """Share of the reply's pairs of words that stand in another text, 0-1."""
    own = _grams(reply, language, 2)
    return len(own & _grams(other, language, 2)) / len(own) if own else 0.0


def parroted(reply: str, told: list[str], language: Language) -> float:
    """Share of the reply that stands in what it was told, counted only in long runs, 0-1."""
    n = _RUN[language]
    # A run that two texts share covers a whole block of the one, if that is cut into blocks of half the length.
    if all(map(_grams(reply, language, _GRAM[language]).isdisjoint, [_blocks(text, language) for text in told])):
        return 0.0
    own = _grams(reply, language, n)
    copied = own & frozenset().union(*(_grams(text, language, n) for text in told))
    length = len(own) + n - 1
    return min(1.0, (len(copied) + n - 1) / length) if copied else 0.0


@lru_cache(maxsize=20_000)
def _blocks(text: str, language: Language) -> frozenset[int]:
    """The n-grams of a text that do not overlap, as `_grams` has them."""
    tokens, n = plain_words(text, language), _GRAM[language]
    return frozenset(map(hash, zip(*[tokens[i::n] for i in range(n)], strict=False)))
