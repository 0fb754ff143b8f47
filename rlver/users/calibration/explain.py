"""One reply under the glass: every cue that moved the emotion and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.users.calibration.recorded import Recorded, replay
from rlver.users.embedded.judge import judge
from rlver.users.embedded.weights import Weights


def explain(
    dialogues: Sequence[Recorded], dialogue: int, turn: int, user: UserType, weights: Weights
) -> dict[str, Any]:
    """The judgement of one recorded reply; both numbers count from 1. The points of the reasons add up to `change`.

    Raises:
        RlverError: there is no such dialogue or reply.
    """
    if dialogue > len(dialogues):
        raise RlverError(f"--dialogue {dialogue}: there are only {len(dialogues)} dialogues.")
    recorded = dialogues[dialogue - 1]
    if turn > len(recorded.turns):
        raise RlverError(f"--turn {turn}: the dialogue has only {len(recorded.turns)} judged replies.")
    talk, cues, change = next(step for number, step in enumerate(replay(recorded), 1) if number == turn)
    mine, reasons = judge(cues, talk, user, weights)
    return {
        "model": recorded.model,
        "profile": recorded.profile.id,
        "language": recorded.profile.language,
        "intention": recorded.profile.need.value,
        "dialogue": dialogue,
        "turn": turn,
        "reply": talk.turns[-1].reply,
        "change": mine,
        "recorded": change,
        "reasons": [{"cue": reason.cue, "points": reason.points} for reason in reasons],
    }
