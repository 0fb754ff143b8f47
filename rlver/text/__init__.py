"""What the judge and the benchmark know of English and Chinese as such: words, sentences, and a language model."""

from rlver.text.ngram import NgramModel
from rlver.text.words import script_share, sentences, words

__all__ = ["NgramModel", "script_share", "sentences", "words"]
