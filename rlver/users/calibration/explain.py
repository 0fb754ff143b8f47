"""Explains the judgement of one recorded reply: every cue that moved the emotion, with its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.users.calibration.recorded import RecordedDialogue, replay
from rlver.users.embedded.judge import judge
from rlver.users.embedded.weights import Weights


def explain(
    dialogues: Sequence[RecordedDialogue], number: int, turn: int, user_type: UserType, weights: Weights
) -> dict[str, Any]:
    """The judgement of one recorded reply. The points of the reasons add up to `change`.

    Args:
        number: of the dialogue, from 1.
        turn: number of the reply, from 1.

    Raises:
        RlverError: there is no such dialogue or reply.
    """
    if number > len(dialogues):
        raise RlverError(f"--dialogue {number}: there are only {len(dialogues)} dialogues.")
    recorded = dialogues[number - 1]
    if turn > len(recorded.turns):
        raise RlverError(f"--turn {turn}: the dialogue has only {len(recorded.turns)} judged replies.")
    dialogue, cues, recorded_change = next(step for k, step in enumerate(replay(recorded), 1) if k == turn)
    change, reasons = judge(cues, dialogue, user_type, weights)
    return {
        "model": recorded.model,
        "profile": recorded.profile.id,
        "language": recorded.profile.language,
        "intention": recorded.profile.need.value,
        "dialogue": number,
        "turn": turn,
        "reply": dialogue.turns[-1].reply,
        "change": change,
        "recorded": recorded_change,
        "reasons": [{"cue": reason.cue, "points": reason.points} for reason in reasons],
    }
