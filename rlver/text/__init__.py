"""English and Chinese text: words, sentences, a small language model, and fast matching of many patterns."""

from rlver.text.ngram import NgramModel
from rlver.text.words import script_share, sentences, words

__all__ = ["NgramModel", "script_share", "sentences", "words"]
