"""Reader and writer of the official transcripts (github Tencent/digitalhuman), one JSON object per line.

Fields: those of the profile (`player`, `scene`, `character`, `topic`, `task`), the final `emo_point` and `emo_state`,
and `history`, a list of messages. The user's messages hold `emotion-point` and, after a reply, `planning`: the change
and its reasons, as an object or as the text of a Python dict.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from rlver.core.dialogue import Reaction, StopReason, Turn, is_farewell
from rlver.core.emotion import band
from rlver.core.errors import RlverError
from rlver.core.profile import Intention, Profile
from rlver.core.transcript import Transcript
from rlver.formats.sage_profiles import CHARACTER_WORDS, TASK_WORDS, parse_official_profile, to_official_profile

_PARTS = ("content", "TargetCompletion", "activity", "analyse")
"""Keys of `planning` in the order of the lines of `Reaction.thought`: what the reply says, how it fits the hidden
intention, the user's train of thought, and the feeling."""


def is_official_transcript(record: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the fields of an official transcript."""
    return "history" in record and "emo_point" in record


def parse_official_transcript(record: Mapping[str, Any], where: str, policy: str) -> tuple[Transcript, Profile]:
    """Convert an official transcript, and the profile that it contains.

    The official code never judges the last reply of a dialogue that reaches the turn limit: it has no reaction.

    Args:
        policy: name of the policy; official transcripts do not hold it.

    Raises:
        RlverError: a field is missing or broken; the message names `where`.
    """
    profile = parse_official_profile({"main_cha": record.get("character"), **record}, where)
    try:
        first_message, *messages = record["history"]
        emotion = float(first_message["emotion-point"])
        turns: list[Turn] = []
        for message in messages:
            if message["role"] == "assistant":
                turns.append(Turn(raw=message["content"], reply=message["content"], score=emotion))
            else:
                emotion = _react(turns[-1], message, emotion)
        opening, final = str(first_message["content"]), float(record["emo_point"])
    except (KeyError, TypeError, ValueError, IndexError, SyntaxError) as error:
        raise RlverError(f"{where}: not an official transcript ({type(error).__name__}: {error}).") from None
    if abs(emotion - final) > 1e-6:
        raise RlverError(f"{where}: the dialogue ends at {emotion:g} points, but emo_point is {final:g}.")
    return (
        Transcript(
            profile=profile.id,
            story=profile.story.id,
            intention=profile.intention,
            character=profile.persona.character,
            language=profile.language,
            policy=policy,
            user="official",
            preset="sage",
            prompt="",
            seed=0,
            think=False,
            opening=opening,
            turns=turns,
            stop=_stop(final, turns),
            score=final,
        ),
        profile,
    )


def to_official_transcript(transcript: Transcript, profile: Profile, start: float) -> dict[str, Any]:
    """Convert a transcript to the official format; `start` is the emotion before the first reply."""
    history: list[dict[str, Any]] = [{"role": "user", "content": transcript.opening, "emotion-point": _whole(start)}]
    for turn in transcript.turns:
        history.append({"role": "assistant", "content": turn.reply})
        if turn.reaction is None:
            continue
        thoughts = [*turn.reaction.thought.split("\n"), "", "", "", ""][:4]
        history.append(
            {
                "role": "user",
                "content": turn.reaction.utterance,
                "thinking": "",
                "emotion-point": _whole(turn.score),
                "planning": dict(zip(_PARTS, thoughts, strict=True)) | {"change": _whole(turn.reaction.change)},
            }
        )
    official = to_official_profile(profile)
    return {
        "id": profile.id,
        "emo_point": _whole(transcript.score),
        "emo_state": f"Emotion-{band(transcript.score)}",
        "target": "eq",
        "player": official["player"],
        "scene": official["scene"],
        "character": CHARACTER_WORDS[transcript.character],
        "topic": profile.story.topic,
        "task": TASK_WORDS[profile.need] if isinstance(profile.intention, Intention) else "",
        "history": history,
    }


def _react(turn: Turn, message: Mapping[str, Any], before: float) -> float:
    """Add the user's reaction to the turn, and return the emotion after it."""
    after = float(message["emotion-point"])
    planning = message.get("planning") or {}
    if isinstance(planning, str):
        planning = ast.literal_eval(planning)
    change = planning.get("change")
    thoughts = [" ".join(str(planning.get(part, "")).rpartition("]\n")[2].split("\n")) for part in _PARTS]
    turn.score = after
    turn.reaction = Reaction(
        change=float(change) if isinstance(change, (int, float)) else after - before,
        thought="\n".join(thoughts) if any(thoughts) else "",
        utterance=str(message["content"]),
    )
    return after


def _stop(final: float, turns: list[Turn]) -> StopReason:
    last = turns[-1].reaction if turns else None
    if band(final) == "S":
        return StopReason.DELIGHTED
    if band(final) == "F":
        return StopReason.FED_UP
    return StopReason.FAREWELL if last is not None and is_farewell(last.utterance) else StopReason.TURN_LIMIT


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
