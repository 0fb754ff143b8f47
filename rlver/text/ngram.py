"""A small class-based trigram model that measures how much a text reads like sentences of a language.

Words that are rare in the reference text are replaced by their shape (-ing, -ed, a number ...), so that the model
learns how words follow each other and not what stories are about. It uses Witten-Bell smoothing.
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
    """A context: the last two words, or as many of them as occur in the reference text before another word.

    The dict caches steps: it maps a next word to its base-2 log-probability and the context after it.
    """

    __slots__ = ("after", "backoff_log", "followed")

    def __init__(self, followed: Sequence[_Followed], after: dict[str, _Context]) -> None:
        super().__init__()
        self.followed = followed
        """Counts of the words that follow the last word, then of those that follow the last two."""
        self.after = after
        """Maps a next word to the two-word context that it forms with the last word."""
        self.backoff_log = sum(log2(distinct / total) for _, distinct, total in followed)
        """Base-2 log of the factor, at most 1, for a word that follows neither in the reference text."""


class _Followed(NamedTuple):
    """Counts of the words that follow a context in the reference text."""

    counts: dict[str, int]
    distinct: int
    """Number of distinct words."""
    total: int
    """Number of occurrences plus number of distinct words."""


class NgramModel:
    """Trigram model over words (English) or characters (Chinese); rare ones are replaced by their shape.

    Args:
        lines: the reference text.
        min_count: words that occur less often in it are rare.
    """

    def __init__(self, lines: Sequence[str], language: Language, min_count: int = 3) -> None:
        self.language = language
        counts = Counter(word for line in lines for word in words(line, language))
        self.common_words = {word for word, count in counts.items() if count >= min_count}
        next_words: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for line in lines:
            tokens = ["<s>", "<s>", *self._tokens(line)]
            for i in range(2, len(tokens)):
                for order in range(3):
                    next_words[tuple(tokens[i - order : i])][tokens[i]] += 1
        followed = {context: _Followed(dict(c), len(c), c.total() + len(c)) for context, c in next_words.items()}
        counts_anywhere, distinct, total = followed.get((), ({}, 0, 0))
        self._unseen = 1.0 / (distinct + 1)
        self._unigrams: dict[str, float] = {}
        if total:
            self._unigrams = {word: (n + distinct * self._unseen) / total for word, n in counts_anywhere.items()}
            self._unseen = distinct * self._unseen / total
        self._unigram_logs = {word: log2(share) for word, share in self._unigrams.items()}
        self._unseen_log = log2(self._unseen)
        self._no_context = _Context((), {})
        self._after = {c[0]: _Context((words_after,), {}) for c, words_after in followed.items() if len(c) == 1}
        for context, words_after in followed.items():
            if len(context) == 2:
                first, last = (self._after[word] for word in context)
                first.after[context[1]] = _Context((*last.followed, words_after), last.after)
        self._start = self._after["<s>"].after["<s>"] if lines else self._no_context

    def _tokens(self, text: str) -> list[str]:
        common = self.common_words
        return [*[w if w in common else _shape(w) for w in words(text, self.language)], _END]

    def log2s(self, text: str) -> list[float]:
        """Base-2 log-probability of each word of the text and of its end."""
        context, logs = self._start, []
        for token in self._tokens(text):
            step = context.get(token)
            if step is not None:
                log, context = step
            elif token in context.after or token == _END:
                log, context = self._step(context, token)
            else:  # the reference text does not have this pair of words
                log = context.backoff_log + self._unigram_logs.get(token, self._unseen_log)
                context = self._after.get(token, self._no_context)
            logs.append(log)
        return logs

    def _step(self, context: _Context, word: str) -> tuple[float, _Context]:
        """Base-2 log-probability of a word that follows the last one in the reference text, or of the end, and the
        context after it."""
        probability = self._unigrams.get(word, self._unseen)
        for counts, distinct, total in context.followed:
            probability = (counts.get(word, 0) + distinct * probability) / total
        step = context[word] = log2(probability), context.after.get(word, self._no_context)
        return step

    def log2s_alone(self, text: str) -> list[float]:
        """Base-2 log-probability of each word and of the end without their context."""
        return [self._unigram_logs.get(token, self._unseen_log) for token in self._tokens(text)]

    def worst_window(self, text: str, size: int = 8) -> float:
        """Mean base-2 log-probability of the least likely `size` words in a row, which shows garble in a long text."""
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
    """The value below which the given share of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
