"""A small class-based trigram model: does a text read like sentences of this language?

Words that the reference text uses rarely are replaced by their shape (-ing, -ed, a number ...), so the model
knows how words follow each other and not which things a story is about. Smoothing is Witten-Bell's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import log2
from typing import NamedTuple

from rlver.core.profile import Language
from rlver.text.words import words

_END = "</s>"
_SUFFIXES = ("ing", "ed", "ly", "n't", "'s", "s")


class _Context(dict[str, tuple[float, "_Context"]]):
    """The last two words, or as many of them as the model has seen a next word of; the steps from here, as far as kept:
    by the next word its base-2 log probability, and the context after it."""

    __slots__ = ("after", "falling", "followed")

    def __init__(self, followed: Sequence[_Followed], after: dict[str, _Context]) -> None:
        super().__init__()
        self.followed = followed
        """What has followed the last word, and what the last two."""
        self.after = after
        """By the next word, the contexts of two words that it makes with the last one."""
        self.falling = sum(log2(kinds / all_) for _, kinds, all_ in followed)
        """What it costs, in bits below 0, that a word has followed neither."""


class _Followed(NamedTuple):
    """What has followed a context."""

    counts: dict[str, int]
    kinds: int
    all: int
    """Kinds and occurrences together."""


class NgramModel:
    """Trigram model over words (English) or characters (Chinese), rare ones replaced by their shape."""

    def __init__(self, lines: Sequence[str], language: Language, min_count: int = 3) -> None:
        self.language = language
        counts = Counter(word for line in lines for word in words(line, language))
        self.known = {word for word, count in counts.items() if count >= min_count}
        nexts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for line in lines:
            tokens = ["<s>", "<s>", *self._tokens(line)]
            for i in range(2, len(tokens)):
                for order in range(3):
                    nexts[tuple(tokens[i - order : i])][tokens[i]] += 1
        followed = {context: _Followed(dict(c), len(c), c.total() + len(c)) for context, c in nexts.items()}
        anywhere, kinds, all_ = followed.get((), ({}, 0, 0))
        self._unseen = 1.0 / (kinds + 1)
        self._alone: dict[str, float] = {}
        if all_:
            self._alone = {word: (count + kinds * self._unseen) / all_ for word, count in anywhere.items()}
            self._unseen = kinds * self._unseen / all_
        self._logs = {word: log2(share) for word, share in self._alone.items()}
        self._unseen_log = log2(self._unseen)
        self._anywhere = _Context((), {})
        self._after = {c[0]: _Context((seen,), {}) for c, seen in followed.items() if len(c) == 1}
        for context, seen in followed.items():
            if len(context) == 2:
                first, last = (self._after[word] for word in context)
                first.after[context[1]] = _Context((*last.followed, seen), last.after)
        self._start = self._after["<s>"].after["<s>"] if lines else self._anywhere

    def _tokens(self, text: str) -> list[str]:
        known = self.known
        return [*[w if w in known else _shape(w) for w in words(text, self.language)], _END]

    def log2s(self, text: str) -> list[float]:
        """Base-2 log probability of each word of the text and of its end."""
        context, logs = self._start, []
        for token in self._tokens(text):
            step = context.get(token)
            if step is not None:
                log, context = step
            elif token in context.after or token == _END:
                log, context = self._step(context, token)
            else:  # nobody has written this pair of words
                log = context.falling + self._logs.get(token, self._unseen_log)
                context = self._after.get(token, self._anywhere)
            logs.append(log)
        return logs

    def _step(self, context: _Context, word: str) -> tuple[float, _Context]:
        """Base-2 log probability of a word that has followed the last one, or of the end, and the context after it."""
        probability = self._alone.get(word, self._unseen)
        for followed, kinds, all_ in context.followed:
            probability = (followed.get(word, 0) + kinds * probability) / all_
        step = context[word] = log2(probability), context.after.get(word, self._anywhere)
        return step

    def log2s_alone(self, text: str) -> list[float]:
        """The same had they stood anywhere."""
        return [self._logs.get(token, self._unseen_log) for token in self._tokens(text)]

    def worst_window(self, text: str, size: int = 8) -> float:
        """Mean base-2 log probability of the least likely `size` words in a row: garble cannot hide in a long text."""
        logs = self.log2s(text)
        if len(logs) <= size:
            return sum(logs) / len(logs)
        window = worst = sum(logs[:size])
        for last, first in zip(logs[size:], logs, strict=False):
            window += last - first
            if window < worst:
                worst = window
        return worst / size


@lru_cache(maxsize=20_000)
def _shape(word: str) -> str:
    if word.isdigit():
        return "<number>"
    if not word[0].isalpha():
        return "<mark>"
    for suffix in _SUFFIXES:
        if word.endswith(suffix):
            return f"<{suffix}>"
    return "<word>"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
