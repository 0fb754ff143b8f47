"""An independent check that replies are sentences: a gain in score must not be a gain in garble.

The check knows another text than the policy's corpus and the agent's reference. It does not ask how likely the
words of a sentence are (a story's own words are always rare) but how much likelier each becomes by the two words
before it: in word salad, not at all. (The mean of this is SLOR, the measure that follows human judgements of
acceptability best: Lau, Clark and Lappin 2017.)
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
"""Share of the base policy's own replies that pass: the threshold is set by it."""
WINDOW = 12
"""Words of the stretch that must hold together. Longer ones tell word salad from sentences better; this one still
finds a bad clause in a sentence without end."""
_SHORTEST = 3
"""Words below which a sentence tells nothing: headings, numbers of a list, "Oh no."."""


class LiftModel(NgramModel):
    """A language model that says what each word gains by standing where it stands."""

    def lifts(self, text: str) -> list[float]:
        """Bits by which each word of the text, and its end, is likelier after the two before it than anywhere."""
        return [after - alone for after, alone in zip(self.log2s(text), self.log2s_alone(text), strict=True)]


@cache
def _model(language: Language) -> LiftModel:
    lines = read_text("rlver.evaluation", f"data/reference.{language}.txt").splitlines()
    return LiftModel([line for line in lines if line], language)


def fluency_score(reply: str, language: Language) -> float:
    """Mean lift, in bits a word, of the worst stretch of the worst sentence; higher reads better.

    Short sentences are let pass, but a reply of nothing else is looked at as a whole.
    """
    parts = [s for s in sentences(reply) if sum(word[0].isalpha() for word in words(s, language)) >= _SHORTEST]
    return min(_worst_stretch(_model(language).lifts(part)) for part in parts or [reply])


def _worst_stretch(lifts: Sequence[float]) -> float:
    size = min(WINDOW, len(lifts))
    return min(sum(lifts[i : i + size]) for i in range(len(lifts) - size + 1)) / size


class FluencyCheck:
    """Passes replies that read at least as well as 95 % of the replies it was calibrated on."""

    def __init__(self, language: Language, threshold: float) -> None:
        self.language = language
        self.threshold = threshold
        """Least `fluency_score` that passes, in bits a word."""

    @classmethod
    def calibrate(cls, language: Language, base_replies: Sequence[str]) -> FluencyCheck:
        """A check that 95 % of these replies pass. Raises RlverError if there are none."""
        if not base_replies:
            raise RlverError("the fluency check needs replies of the base policy to be calibrated on; there are none.")
        scores = [fluency_score(reply, language) for reply in base_replies]
        return cls(language, quantile(scores, 1 - PASSING_SHARE))

    def passes(self, reply: str) -> bool:
        """Whether a reply reads like sentences; an empty one does not."""
        return bool(reply.strip()) and fluency_score(reply, self.language) >= self.threshold

    def share(self, replies: Sequence[str]) -> float:
        """Share of replies that pass, 0-1; 0 if there are none."""
        return sum(map(self.passes, replies)) / len(replies) if replies else 0.0


def replies_of(transcripts: Iterable[Transcript]) -> list[str]:
    """What the users of these dialogues read: all replies but those that broke the format."""
    return [turn.reply for transcript in transcripts for turn in transcript.turns if turn.reaction is not None]
