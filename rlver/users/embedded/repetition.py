"""What a reply repeats: earlier replies, or the user's own words."""

from __future__ import annotations

from functools import lru_cache

from rlver.core.profile import Language
from rlver.text.words import first_words, words
from rlver.users.embedded.vocabulary import plain_words

# Chinese has no spaces, so lengths are counted in characters: about twice as many for the same content.
# A copied run must be at least twice the n-gram size minus one, so that it contains a whole block; see `copied_share`.
_RUN = {"en": 7, "zh": 12}
_GRAM = {"en": 4, "zh": 6}


@lru_cache(maxsize=20_000)
def _grams(text: str, language: Language, n: int) -> frozenset[int]:
    """Hashes of the n-grams of a text. They have 64 bits, so in practice no two n-grams share one."""
    tokens = plain_words(text, language)
    return frozenset(map(hash, zip(*[tokens[i:] for i in range(n)], strict=False)))


@lru_cache(maxsize=20_000)
def first_three(text: str, language: Language) -> tuple[str, ...]:
    """The first three words of a text."""
    return first_words(text[:60], 3, language)


def repeated_share(reply: str, earlier: list[str], language: Language) -> tuple[float, int]:
    """How much of a reply occurs in earlier replies. A reply shorter than an n-gram is compared as a whole.

    Returns:
        The share of the reply's n-grams that occur in earlier replies, 0-1, and the number of earlier replies that
        contain more than 80 % of them.
    """
    n = _GRAM[language]
    own = new = _grams(reply, language, n)
    if not own:
        again = sum(words(reply, language) == words(earlier_reply, language) for earlier_reply in earlier)
        return float(again > 0), again
    again = 0
    for earlier_reply in earlier:
        grams = _grams(earlier_reply, language, n)
        if not own.isdisjoint(grams):
            new = new - grams
            again += len(own & grams) / len(own) > 0.8
    return (len(own) - len(new)) / len(own), again


def shared_pairs(reply: str, text: str, language: Language) -> float:
    """Share of the reply's word pairs that occur in another text, 0-1."""
    own = _grams(reply, language, 2)
    return len(own & _grams(text, language, 2)) / len(own) if own else 0.0


def copied_share(reply: str, utterances: list[str], language: Language) -> float:
    """Share of the reply that is copied from the user's utterances, counted in long runs only, 0-1."""
    n = _RUN[language]
    # A quick check first: a run that two texts share contains at least one whole block of the utterance.
    if all(map(_grams(reply, language, _GRAM[language]).isdisjoint, [_blocks(text, language) for text in utterances])):
        return 0.0
    own = _grams(reply, language, n)
    copied = own & frozenset().union(*(_grams(text, language, n) for text in utterances))
    length = len(own) + n - 1
    return min(1.0, (len(copied) + n - 1) / length) if copied else 0.0


@lru_cache(maxsize=20_000)
def _blocks(text: str, language: Language) -> frozenset[int]:
    """Hashes, as in `_grams`, of the blocks that a text consists of: n-grams that do not overlap."""
    tokens, n = plain_words(text, language), _GRAM[language]
    return frozenset(map(hash, zip(*[tokens[i::n] for i in range(n)], strict=False)))
