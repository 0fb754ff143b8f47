"""Recorded dialogues as evidence: every reply with the change that somebody else's judge gave it.

Files hold one model's dialogues each and are named after it: in the official format (github Tencent/digitalhuman), in
ours, or as a log of `rlver bench`.
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
from rlver.core.errors import RlverError
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


class Recorded(Frozen):
    """A recorded dialogue."""

    model: str
    """Name of its file, without the ending; with the folder's where two files would share it."""
    profile: Profile
    opening: str
    start: float
    """Emotion before the first reply."""
    floor: float = -inf
    """Lowest emotion that could be reached."""
    turns: tuple[tuple[str, float, str], ...]
    """(reply, change of emotion, what the user said next) of every judged reply."""
    final: float
    """Final score, 0-100."""


class Judged(Frozen):
    """One judged reply and what the embedded agent sees in it."""

    model: str
    profile: str
    intention: Intention
    dialogue: int
    """Index of its dialogue among all."""
    score: float
    """Recorded emotion before the reply."""
    change: float
    """Recorded change."""
    seen: Observation


def read_recorded(paths: Sequence[Path], profiles: Sequence[Profile] = ()) -> list[Recorded]:
    """The dialogues of some files or folders of files. `profiles` are looked into for transcripts of our format,
    beside the generated ones.

    Raises:
        RlverError: a file is missing, broken or empty, or a profile cannot be found; the message names it.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise RlverError(f"{', '.join(map(str, paths)) or 'no path'}: no .jsonl files of transcripts here.")
    if len(set(files)) < len(files):
        raise RlverError("a file of transcripts is named twice; name each once.")
    stems = [file.stem for file in files]
    known = {profile.id: profile for profile in profiles}
    cache: dict[str, Profile] = {}
    dialogues = []
    for file in files:
        model = file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}"
        records = [(where, record) for where, record in read_objects(file) if record.get("kind") not in ("run", "end")]
        found = [_parse(model, record.get("transcript", record), where, known, cache) for where, record in records]
        if not found:
            raise RlverError(f"{file}: no dialogues in this file.")
        dialogues += found
    return dialogues


def _parse(
    model: str, record: dict[str, Any], where: str, known: dict[str, Profile], cache: dict[str, Profile]
) -> Recorded:
    if is_official_profile(record):
        return _official(model, record, where, cache)
    try:
        transcript = Transcript.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RlverError(
            f"{where}: neither an official transcript nor one of ours ({field}: {first['msg']})."
        ) from None
    profile = known.get(transcript.profile) or regenerate(transcript.profile)
    if profile is None:
        raise RlverError(f"{where}: the profile {transcript.profile!r} is unknown; name its file with --profiles.")
    if transcript.preset not in PRESETS:
        raise RlverError(f"{where}: unknown preset {transcript.preset!r}.")
    judged = [turn for turn in transcript.turns if turn.reaction is not None]
    return Recorded(
        model=model,
        profile=profile,
        opening=transcript.opening,
        start=PRESETS[transcript.preset].start,
        floor=PRESETS[transcript.preset].floor,
        turns=tuple((t.reply, t.reaction.change, t.reaction.utterance) for t in judged if t.reaction),
        final=transcript.score,
    )


def _official(model: str, record: dict[str, Any], where: str, cache: dict[str, Profile]) -> Recorded:
    key = str(record.get("id"))
    if key not in cache:
        cache[key] = parse_official_profile(record, where)
    history = record.get("history")
    if not isinstance(history, list) or not history or not all(isinstance(entry, dict) for entry in history):
        raise RlverError(f"{where}: the official transcript has no list of messages in its field 'history'.")
    try:
        opening, start = str(history[0]["content"]), float(history[0]["emotion-point"])
        turns, score = [], start
        for reply, reaction in zip(history[1::2], history[2::2], strict=False):
            if reply["role"] != "assistant" or reaction["role"] != "user":
                raise RlverError(f"{where}: the messages of 'history' must take turns, user first.")
            after = float(reaction["emotion-point"])
            turns.append((str(reply["content"]), after - score, str(reaction["content"])))
            score = after
        final = float(record.get("emo_point", score))
    except (KeyError, TypeError, ValueError) as error:
        raise RlverError(f"{where}: a message of 'history' lacks a field or holds a wrong value ({error}).") from None
    return Recorded(
        model=model, profile=cache[key], opening=opening, start=start, turns=tuple(turns), final=min(100.0, final)
    )


def replay(recorded: Recorded) -> Iterable[tuple[Dialogue, Cues, float]]:
    """Step through a recorded dialogue: after each of its replies (dialogue, cues of the reply, recorded change).

    The recorded user turns and scores are kept, so what the agent sees is what the recorded judge saw.
    """
    rules = {"start": recorded.start, "floor": recorded.floor, "ceiling": 100.0 if recorded.floor == 0 else inf}
    preset = PRESETS["release"].model_copy(update={**rules, "replies": len(recorded.turns) + 1})
    dialogue = Dialogue(recorded.profile, preset)
    facts = recorded.profile.story.facts
    fact = next((i for i, fact in enumerate(facts) if fact.say in recorded.opening), None)
    dialogue.begin(Opening(recorded.opening, fact))
    for reply, change, utterance in recorded.turns:
        dialogue.stop = None  # the recorded judge decides when it is over
        dialogue.reply(reply)
        cues = read_cues(dialogue)
        yield dialogue, cues, change
        told = next((i for i, fact in enumerate(facts) if fact.say in utterance and i not in dialogue.told), None)
        acts = tuple(tag(reply, recorded.profile.language).acts)
        dialogue.react(Reaction(change=change, utterance=utterance, acts=acts, fact=told))


def judged_replies(
    dialogues: Sequence[Recorded], user: UserType = "vanilla", on_dialogue: Callable[[int], None] | None = None
) -> list[Judged]:
    """Every judged reply of some dialogues with what the agent sees in it."""
    rows = []
    for number, recorded in enumerate(dialogues):
        for dialogue, cues, change in replay(recorded):
            rows.append(
                Judged.model_construct(
                    model=recorded.model,
                    profile=recorded.profile.id,
                    intention=recorded.profile.need,
                    dialogue=number,
                    score=dialogue.emotion,
                    change=change,
                    seen=observe(cues, dialogue, user),
                )
            )
        if on_dialogue:
            on_dialogue(number + 1)
    return rows


def read_ids(path: Path) -> set[str]:
    """Profile ids from a file: one a line, a JSON list of them, or JSON lines with a field `id` or `profile`.

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
            raise RlverError(f"{path}: starts like a JSON list of ids, and is none.") from None
    else:
        ids = {line.strip() for line in text.splitlines()}
    ids.discard("")
    if not ids:
        raise RlverError(f"{path}: no profile ids in this file.")
    return ids
