"""Which acts a policy performs for users with each hidden intention, and how many of the acts suit it.

The embedded user reports the acts that it recognises in a reply. Most other users report none. For those there are no
figures, because acts that nobody reported are not the same as acts that did not occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlver.core.dialogue import Turn
from rlver.core.profile import ChatIntention, Intention
from rlver.core.transcript import Transcript
from rlver.users.embedded.acts import NEED_ACTS
from rlver.users.embedded.judge import suits

NONE = "none"
"""Column of replies in which the user recognised none of the eight acts."""


def reports_acts(transcripts: Iterable[Transcript]) -> bool:
    """Whether the users of these dialogues report acts: embedded users do, and so does any user that reported one.

    Dialogues without one of the eight hidden intentions do not count.
    """
    return any(
        transcript.user.startswith("embedded/") or any(_reported_acts(turn) for turn in transcript.turns)
        for transcript in transcripts
        if isinstance(transcript.intention, Intention)
    )


def act_matrix(transcripts: Iterable[Transcript]) -> dict[Intention, dict[str, int]]:
    """The number of judged replies by hidden intention (rows) and act (columns).

    A reply with two acts counts in both columns. Dialogues without one of the eight hidden intentions do not count.
    """
    matrix = {intention: dict.fromkeys((*NEED_ACTS, NONE), 0) for intention in Intention}
    for transcript in transcripts:
        for turn in transcript.turns:
            if turn.reaction is not None and isinstance(transcript.intention, Intention):
                for act in _reported_acts(turn) or [NONE]:
                    matrix[transcript.intention][act] += 1
    return matrix


def fit_share(transcripts: Iterable[Transcript]) -> float:
    """The share of all reported acts that suit the hidden intention of their user, 0-1; 0 if there are no acts."""
    fits = [fit for transcript in transcripts for fit in fitting_acts(transcript.intention, transcript.turns)]
    return sum(fits) / len(fits) if fits else 0.0


def fitting_acts(intention: Intention | ChatIntention, turns: Sequence[Turn]) -> list[bool]:
    """For each act reported in a dialogue, whether it suits the hidden intention; empty for chit-chat intentions."""
    if not isinstance(intention, Intention):
        return []
    return [suits(act, intention) for turn in turns for act in _reported_acts(turn)]


def _reported_acts(turn: Turn) -> list[str]:
    """Which of the eight acts the user reported. Names of a user's own are ignored: nobody knows whom they suit."""
    return [act for act in turn.reaction.acts if act in NEED_ACTS] if turn.reaction is not None else []
