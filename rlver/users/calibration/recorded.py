"""Recorded dialogues: every reply with the change of emotion that another judge gave it.

Each file holds the dialogues of one model and is named after it. It is in the official format (github
Tencent/digitalhuman), in the format of our transcripts, or a log of `rlver bench`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError, first_problem
from rlver.core.files import read_file
from rlver.core.interfaces import UserType
from rlver.core.jsonl import read_objects
from rlver.core.profile import Frozen, Intention, Profile
from rlver.core.transcript import Transcript
from rlver.formats.sage_profiles import is_official_profile, parse_official_profile
from rlver.stories.generate import regenerate
from rlver.users.embedded.acts import tag
from rlver.users.embedded.cues import Cues, read_cues
from rlver.users.embedded.judge import Observation, observe


class RecordedDialogue(Frozen):
    """A recorded dialogue."""

    model: str
    """Name of its file without the ending, preceded by the folder's name if two files share it."""
    profile: Profile
    opening: str
    start: float
    """Emotion before the first reply."""
    floor: float = -inf
    """Lowest emotion that the dialogue's rules allow."""
    turns: tuple[tuple[str, float, str], ...]
    """(reply, change of emotion, next utterance of the user) of every judged reply."""
    final: float
    """Final score, 0-100."""


class JudgedReply(Frozen):
    """One judged reply and what the embedded judge observes in it."""

    model: str
    profile: str
    intention: Intention
    dialogue: int
    """Index of its dialogue among all dialogues."""
    emotion: float
    """Recorded emotion before the reply."""
    change: float
    """Recorded change."""
    observation: Observation


def read_recorded(paths: Sequence[Path], profiles: Sequence[Profile] = ()) -> list[RecordedDialogue]:
    """Read dialogues from files and folders of files.

    Args:
        profiles: profiles to which transcripts of our format may refer, besides the generated ones.

    Raises:
        RlverError: a file is missing, broken or empty, or a profile is unknown. The message names it.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise RlverError(f"{', '.join(map(str, paths)) or 'no path'}: there are no .jsonl files with transcripts.")
    if len(set(files)) < len(files):
        raise RlverError("a file with transcripts is given twice; give each file once.")
    stems = [file.stem for file in files]
    known = {profile.id: profile for profile in profiles}
    cache: dict[str, Profile] = {}
    dialogues = []
    for file in files:
        model = file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}"
        records = [(where, record) for where, record in read_objects(file) if record.get("kind") not in ("run", "end")]
        parsed = [_parse(model, record.get("transcript", record), where, known, cache) for where, record in records]
        if not parsed:
            raise RlverError(f"{file}: this file holds no dialogues.")
        dialogues += parsed
    return dialogues


def _parse(
    model: str, record: dict[str, Any], where: str, known: dict[str, Profile], cache: dict[str, Profile]
) -> RecordedDialogue:
    if is_official_profile(record):
        return _official(model, record, where, cache)
    try:
        transcript = Transcript.model_validate(record)
    except ValidationError as error:
        raise RlverError(
            f"{where}: neither an official transcript nor one of rlver's ({first_problem(error)})."
        ) from None
    profile = known.get(transcript.profile) or regenerate(transcript.profile)
    if profile is None:
        raise RlverError(f"{where}: the profile {transcript.profile!r} is unknown; give its file with --profiles.")
    if transcript.preset not in PRESETS:
        raise RlverError(f"{where}: unknown preset {transcript.preset!r}.")
    judged = [turn for turn in transcript.turns if turn.reaction is not None]
    return RecordedDialogue(
        model=model,
        profile=profile,
        opening=transcript.opening,
        start=PRESETS[transcript.preset].start,
        floor=PRESETS[transcript.preset].floor,
        turns=tuple((t.reply, t.reaction.change, t.reaction.utterance) for t in judged if t.reaction),
        final=transcript.score,
    )


def _official(model: str, record: dict[str, Any], where: str, cache: dict[str, Profile]) -> RecordedDialogue:
    key = str(record.get("id"))
    if key not in cache:
        cache[key] = parse_official_profile(record, where)
    history = record.get("history")
    if not isinstance(history, list) or not history or not all(isinstance(entry, dict) for entry in history):
        raise RlverError(f"{where}: the official transcript has no list of messages in its field 'history'.")
    try:
        opening, start = str(history[0]["content"]), float(history[0]["emotion-point"])
        turns, emotion = [], start
        for reply, reaction in zip(history[1::2], history[2::2], strict=False):
            if reply["role"] != "assistant" or reaction["role"] != "user":
                raise RlverError(
                    f"{where}: the messages of 'history' must alternate between user and assistant, user first."
                )
            after = float(reaction["emotion-point"])
            turns.append((str(reply["content"]), after - emotion, str(reaction["content"])))
            emotion = after
        final = float(record.get("emo_point", emotion))
    except (KeyError, TypeError, ValueError) as error:
        raise RlverError(f"{where}: a message of 'history' lacks a field or holds a wrong value ({error}).") from None
    return RecordedDialogue(
        model=model, profile=cache[key], opening=opening, start=start, turns=tuple(turns), final=min(100.0, final)
    )


def replay(recorded: RecordedDialogue) -> Iterable[tuple[Dialogue, Cues, float]]:
    """Step through a recorded dialogue. Yields (dialogue so far, cues of the last reply, recorded change).

    Utterances and emotions are the recorded ones, so the embedded judge sees what the recorded judge saw.
    """
    rules = {"start": recorded.start, "floor": recorded.floor, "ceiling": 100.0 if recorded.floor == 0 else inf}
    preset = PRESETS["release"].model_copy(update={**rules, "replies": len(recorded.turns) + 1})
    dialogue = Dialogue(recorded.profile, preset)
    facts = recorded.profile.story.facts
    fact = next((i for i, fact in enumerate(facts) if fact.say in recorded.opening), None)
    dialogue.begin(Opening(recorded.opening, fact))
    for reply, change, utterance in recorded.turns:
        dialogue.stop = None  # the recording decides when the dialogue ends
        dialogue.reply(reply)
        cues = read_cues(dialogue)
        yield dialogue, cues, change
        fact = next((i for i, fact in enumerate(facts) if fact.say in utterance and i not in dialogue.told_facts), None)
        acts = tuple(tag(reply, recorded.profile.language).acts)
        dialogue.react(Reaction(change=change, utterance=utterance, acts=acts, fact=fact))


def judged_replies(
    dialogues: Sequence[RecordedDialogue],
    user_type: UserType = "vanilla",
    on_dialogue: Callable[[int], None] | None = None,
) -> list[JudgedReply]:
    """Every judged reply of some dialogues, with what a user of this type observes in it.

    Args:
        on_dialogue: called with the number of dialogues that are done.
    """
    replies = []
    for number, recorded in enumerate(dialogues):
        for dialogue, cues, change in replay(recorded):
            replies.append(
                JudgedReply.model_construct(
                    model=recorded.model,
                    profile=recorded.profile.id,
                    intention=recorded.profile.need,
                    dialogue=number,
                    emotion=dialogue.emotion,
                    change=change,
                    observation=observe(cues, dialogue, user_type),
                )
            )
        if on_dialogue:
            on_dialogue(number + 1)
    return replies


def read_ids(path: Path) -> set[str]:
    """Read profile ids from a file: one per line, a JSON list, or JSON lines with a field `id` or `profile`.

    Raises:
        RlverError: the file is missing or holds no ids.
    """
    text = read_file(path)
    if text.lstrip().startswith("{"):
        ids = {str(record.get("id") or record.get("profile") or "") for _, record in read_objects(path)}
    elif text.lstrip().startswith("["):
        try:
            ids = {str(name) for name in json.loads(text)}
        except (ValueError, TypeError):
            raise RlverError(f"{path}: starts like a JSON list of ids, but is not valid JSON.") from None
    else:
        ids = {line.strip() for line in text.splitlines()}
    ids.discard("")
    if not ids:
        raise RlverError(f"{path}: this file holds no profile ids.")
    return ids
