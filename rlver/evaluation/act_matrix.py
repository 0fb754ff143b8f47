"""What a policy does for whom: acts against hidden intentions, and how often it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from rlver.core.profile import Intention
from rlver.core.transcript import Transcript
from rlver.text.words import words
from rlver.users.embedded.acts import NEED_ACTS
from rlver.users.embedded.judge import suits

NONE = "none"
"""Column of replies in which the user saw none of the eight acts."""


def act_matrix(transcripts: Sequence[Transcript]) -> dict[Intention, dict[str, int]]:
    """Replies by hidden intention (rows) and act (columns). A reply that does two acts counts in both."""
    matrix = {intention: dict.fromkeys((*NEED_ACTS, NONE), 0) for intention in Intention}
    for transcript in transcripts:
        for turn in transcript.turns:
            if turn.reaction is not None and isinstance(transcript.intention, Intention):
                for act in turn.reaction.acts or (NONE,):
                    matrix[transcript.intention][act] += 1
    return matrix


def fit_share(transcripts: Sequence[Transcript]) -> float:
    """Share of all acts that suit the hidden intention of the user they were done to, 0-1; 0 if there are none."""
    fits = [
        suits(act, transcript.intention)
        for transcript in transcripts
        if isinstance(transcript.intention, Intention)
        for turn in transcript.turns
        if turn.reaction is not None
        for act in turn.reaction.acts
    ]
    return sum(fits) / len(fits) if fits else 0.0


def repeated_share(transcripts: Sequence[Transcript]) -> float:
    """Share of replies that say, word for word, what an earlier reply of the same dialogue said, 0-1."""
    repeated = total = 0
    for transcript in transcripts:
        seen: set[tuple[str, ...]] = set()
        for turn in transcript.turns:
            said = tuple(word for word in words(turn.reply, transcript.language) if word[0].isalnum())
            repeated += said in seen
            total += 1
            seen.add(said)
    return repeated / total if total else 0.0
