"""A small class-based trigram model: does a text read like sentences of this language?

Words that the reference text uses rarely are replaced by their shape (-ing, -ed, a number ...), so the model
knows how words follow each other and not which things a story is about. Smoothing is Witten-Bell's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log2

from rlver.core.profile import Language
from rlver.text.words import words

_Followed = tuple[dict[str, int], int, int]
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
        followed = {context: (dict(c), len(c), c.total() + len(c)) for context, c in nexts.items()}
        # By word: what followed it, how many kinds of words, kinds and occurrences together, and the same by the word
        # before it.
        self._after: dict[str, tuple[dict[str, int], int, int, dict[str, _Followed]]] = {
            context[0]: (*seen, {}) for context, seen in followed.items() if len(context) == 1
        }
        for context, seen in followed.items():
            if len(context) == 2:
                self._after[context[1]][3][context[0]] = seen
        anywhere, kinds, all_ = followed.get((), ({}, 0, 0))
        self._unseen = 1.0 / (kinds + 1)
        self._alone: dict[str, float] = {}
        if all_:
            self._alone = {word: (count + kinds * self._unseen) / all_ for word, count in anywhere.items()}
            self._unseen = kinds * self._unseen / all_

    def _shape(self, word: str) -> str:
        if word.isdigit():
            return "<number>"
        if not word[0].isalpha():
            return "<mark>"
        for suffix in _SUFFIXES:
            if word.endswith(suffix):
                return f"<{suffix}>"
        return "<word>"

    def _tokens(self, text: str) -> list[str]:
        known, shape = self.known, self._shape
        return ["<s>", "<s>", *[w if w in known else shape(w) for w in words(text, self.language)], "</s>"]

    def log2s(self, text: str) -> list[float]:
        """Base-2 log probability of each word of the text and of its end."""
        tokens = self._tokens(text)
        alone, unseen, after = self._alone, self._unseen, self._after
        logs = []
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
            probability = alone.get(c, unseen)
            if b in after:
                followed, kinds, all_, before = after[b]
                probability = (followed.get(c, 0) + kinds * probability) / all_
                if a in before:
                    followed, kinds, all_ = before[a]
                    probability = (followed.get(c, 0) + kinds * probability) / all_
            logs.append(log2(probability))
        return logs

    def log2s_alone(self, text: str) -> list[float]:
        """The same had they stood anywhere."""
        return [log2(self._alone.get(token, self._unseen)) for token in self._tokens(text)[2:]]

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
