"""How often a policy repeats itself within a dialogue."""

from __future__ import annotations

from collections.abc import Iterable

from rlver.core.transcript import Transcript
from rlver.text.words import words


def repeated_share(transcripts: Iterable[Transcript]) -> float:
    """The share of replies with the same words as an earlier reply of their dialogue, 0-1; 0 if there are no replies.

    Case and punctuation do not matter.
    """
    repeated = total = 0
    for transcript in transcripts:
        earlier: set[tuple[str, ...]] = set()
        for turn in transcript.turns:
            reply = tuple(word for word in words(turn.reply, transcript.language) if word[0].isalnum())
            repeated += reply in earlier
            total += 1
            earlier.add(reply)
    return repeated / total if total else 0.0
