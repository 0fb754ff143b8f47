"""An independent check that replies consist of sentences, so that a gain in score is not a gain in garble.

The check uses other reference text than the policy's corpus and the embedded user. It does not measure how likely the
words of a sentence are, because the words of a particular story are always rare. It measures how much likelier each
word becomes by the two words before it, which in word salad is not at all. (The mean of this lift is SLOR, the measure
that agrees best with human judgements of acceptability: Lau, Clark and Lappin 2017.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from rlver.core.data import read_text
from rlver.core.errors import RlverError
from rlver.core.profile import Language
from rlver.core.transcript import Transcript
from rlver.text.ngram import NgramModel, quantile
from rlver.text.words import sentences, words

PASSING_SHARE = 0.95
"""Share of the base policy's own replies that pass. It determines the threshold."""
WINDOW = 12
"""Number of words in a row whose mean lift is measured. A longer window separates word salad from sentences better, but
this one still detects a garbled clause within a very long sentence."""
_MIN_WORDS = 3
"""Sentences with fewer words are ignored: headings, list numbers, "Oh no."."""


class LiftModel(NgramModel):
    """A trigram model that measures how much the context of a word raises its probability."""

    def lifts(self, text: str) -> list[float]:
        """For each word of the text and for its end, the bits that it gains by the two words before it."""
        return [in_context - alone for in_context, alone in zip(self.log2s(text), self.log2s_alone(text), strict=True)]


@cache
def _model(language: Language) -> LiftModel:
    lines = read_text("rlver.evaluation", f"data/reference.{language}.txt").splitlines()
    return LiftModel([line for line in lines if line], language)


def fluency_score(reply: str, language: Language) -> float:
    """The smallest mean lift of any window in any sentence of a reply, in bits per word; higher is more fluent.

    Very short sentences are ignored. A reply that has no other sentences is scored as a whole.
    """
    parts = [s for s in sentences(reply) if sum(word[0].isalpha() for word in words(s, language)) >= _MIN_WORDS]
    return min(_smallest_mean(_model(language).lifts(part)) for part in parts or [reply])


def _smallest_mean(lifts: Sequence[float]) -> float:
    """The smallest mean over `WINDOW` consecutive values, or over all values if there are fewer."""
    size = min(WINDOW, len(lifts))
    return min(sum(lifts[i : i + size]) for i in range(len(lifts) - size + 1)) / size


class FluencyCheck:
    """Passes replies that are at least as fluent as 95 % of the replies on which it was calibrated.

    Args:
        threshold: the smallest `fluency_score` that passes, in bits per word.
    """

    def __init__(self, language: Language, threshold: float) -> None:
        self.language = language
        self.threshold = threshold

    @classmethod
    def calibrate(cls, language: Language, base_replies: Sequence[str]) -> FluencyCheck:
        """A check that 95 % of these replies pass. Raises RlverError if there are none."""
        if not base_replies:
            raise RlverError("the fluency check is calibrated on replies of the base policy, and there are none.")
        scores = [fluency_score(reply, language) for reply in base_replies]
        return cls(language, quantile(scores, 1 - PASSING_SHARE))

    def passes(self, reply: str) -> bool:
        """Whether a reply consists of sentences. An empty reply does not pass."""
        return bool(reply.strip()) and fluency_score(reply, self.language) >= self.threshold

    def share(self, replies: Sequence[str]) -> float:
        """The share of replies that pass, 0-1; 0 if there are none."""
        return sum(map(self.passes, replies)) / len(replies) if replies else 0.0


def replies_of(transcripts: Iterable[Transcript]) -> list[str]:
    """The replies that users read: all except those that broke the format or were never judged."""
    return [turn.reply for transcript in transcripts for turn in transcript.turns if turn.reaction is not None]
