"""Whether a sentence is fluent, measured with an n-gram model."""

from __future__ import annotations

from functools import cache, lru_cache

from rlver.core.data import read_text, read_yaml
from rlver.core.profile import Language
from rlver.stories.library import load_stories
from rlver.text.ngram import NgramModel, quantile
from rlver.text.words import words


@cache
def fluency(language: Language) -> tuple[NgramModel, float]:
    """An n-gram model of the language, and the score that 97 % of unseen sentences reach."""
    lines = [line for line in read_text("rlver.users.embedded", f"data/reference.{language}.txt").splitlines() if line]
    examples = read_yaml("rlver.users.embedded", "data/act_examples.yaml")[language]
    lines += [sentence for group in examples.values() for sentence in group]
    lines += [fact.say.format(a="Kim", b="Lee") for story in load_stories(language, "train") for fact in story.facts]
    scores = []
    for reference, unseen in ((lines[::2], lines[1::2]), (lines[1::2], lines[::2])):
        model = NgramModel(reference, language, min_count=2)
        scores += [model.worst_window(line) for line in unseen]
    # A model of all lines scores unseen sentences slightly higher than these two do, so the threshold is lenient.
    return NgramModel(lines, language), quantile(scores, 0.03)


@lru_cache(maxsize=20_000)
def garbled_bits(sentence: str, language: Language) -> float:
    """Bits by which a sentence falls below the fluency threshold. Headings and list marks count as fluent."""
    model, threshold = fluency(language)
    if sum([word[0].isalpha() for word in words(sentence, language)]) < 3:
        return 0.0
    return max(0.0, threshold - model.worst_window(sentence))
