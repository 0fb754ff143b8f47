"""A small class-based trigram model: does a text read like sentences of this language?

Words that the reference text uses rarely are replaced by their shape (-ing, -ed, a number ...), so the model
knows how words follow each other and not which things a story is about. Smoothing is Witten-Bell's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

from rlver.core.profile import Language
from rlver.text.words import words

_SUFFIXES = ("ing", "ed", "ly", "n't", "'s", "s")


class NgramModel:
    """Trigram model over words (English) or characters (Chinese), rare ones replaced by their shape."""

    def __init__(self, lines: Sequence[str], language: Language, min_count: int = 3) -> None:
        self.language = language
        counts = Counter(word for line in lines for word in words(line, language))
        self.known = {word for word, count in counts.items() if count >= min_count}
        nexts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for line in lines:
            tokens = self._tokens(line)
            for i in range(2, len(tokens)):
                for order in range(3):
                    nexts[tuple(tokens[i - order : i])][tokens[i]] += 1
        # What follows a context, how many kinds of words these are, and kinds and occurrences together.
        self._next = {context: (dict(c), len(c), c.total() + len(c)) for context, c in nexts.items()}
        self._vocabulary = len(nexts[()]) + 1
        self._log2 = lru_cache(maxsize=200_000)(self._log2_uncached)

    def _shape(self, word: str) -> str:
        if word.isdigit():
            return "<number>"
        if not word[0].isalpha():
            return "<mark>"
        return next((f"<{suffix}>" for suffix in _SUFFIXES if word.endswith(suffix)), "<word>")

    def _tokens(self, text: str) -> list[str]:
        known, shape = self.known, self._shape
        return ["<s>", "<s>", *[w if w in known else shape(w) for w in words(text, self.language)], "</s>"]

    def _log2_uncached(self, a: str, b: str, c: str) -> float:
        probability = 1.0 / self._vocabulary
        for context in ((), (b,), (a, b)):
            seen = self._next.get(context)
            if seen is None:
                break  # a longer context ends with this one, and has not been seen either
            nexts, kinds, all_ = seen
            probability = (nexts.get(c, 0) + kinds * probability) / all_
        return math.log2(probability)

    def log2s(self, text: str) -> list[float]:
        """Base-2 log probability of each word of the text and of its end."""
        tokens = self._tokens(text)
        return list(map(self._log2, tokens, tokens[1:], tokens[2:]))

    def worst_window(self, text: str, size: int = 8) -> float:
        """Mean base-2 log probability of the least likely `size` words in a row: garble cannot hide in a long text."""
        logs = self.log2s(text)
        if len(logs) <= size:
            return sum(logs) / len(logs)
        window = worst = sum(logs[:size])
        for i in range(size, len(logs)):
            window += logs[i] - logs[i - size]
            worst = min(worst, window)
        return worst / size


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
