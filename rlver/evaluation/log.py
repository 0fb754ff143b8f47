"""The log of a benchmark: settings in the first line, then a line per dialogue as soon as it is over.

Lines are only ever added, so that a kill at any moment loses nothing but what was under way. A log that is resumed
goes on behind its last whole line; once everything is there it is put in order, and so equals that of a run that
nothing interrupted.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlver.core.data import digest
from rlver.core.errors import RlverError
from rlver.core.files import lock_folder
from rlver.core.jsonl import read_objects
from rlver.core.profile import Frozen, Language, Profile
from rlver.core.transcript import Transcript
from rlver.llm.usage import Tokens
from rlver.version import version

Key = tuple[str, int]
"""Id of the profile and number of the repeat."""


class RunConfig(Frozen):
    """Everything that decides how a dialogue goes, but for the profile and the number of the repeat."""

    policy: str
    """The policy's spec."""
    prompt: str
    """Hash of its system prompt."""
    think: bool
    temperature: float | None
    max_tokens: int | None
    top_p: float | None = None
    user: str
    """The sentient agent's identity: model, and a hash of prompts and options."""
    user_settings: dict[str, Any] = Field(default_factory=dict)
    """How the model behind the user is asked; empty for users without one."""
    preset: str
    language: Language
    seed: int

    @property
    def hash(self) -> str:
        """Eight hex digits that stand for these settings."""
        return digest(self.model_dump_json())


class RunHead(BaseModel):
    """The first line."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["run"] = "run"
    version: Literal[1] = 1
    config: RunConfig
    hash: str
    """Of `config`."""
    versions: dict[str, str]
    """Of the packages that began the log, and of Python."""


class LoggedDialogue(BaseModel):
    """The line of a dialogue."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["dialogue"] = "dialogue"
    repeat: int
    profile_hash: str
    usage: dict[str, Tokens] = Field(default_factory=dict)
    """Tokens of the answers that were used, by endpoint; the same whether they came from there or from the cache."""
    transcript: Transcript


class RunEnd(BaseModel):
    """The last line of a log in which nothing is missing."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["end"] = "end"
    dialogues: int


def profile_hash(profile: Profile) -> str:
    """Eight hex digits that stand for all that a profile says."""
    return digest(profile.model_dump_json())


class RunLog:
    """An open log. Use it in a `with` statement.

    Args:
        path: the file; its folder is locked while the log is open.
        resume: go on with what is there. Without it an unfinished log is refused, and a finished one set aside.

    Raises:
        RlverError: the folder cannot be used, another process writes to it, or the log there was made with other
            settings, which the message tells.
    """

    def __init__(self, path: Path, config: RunConfig, resume: bool = False) -> None:
        self.path, self.config = path, config
        self.scored: dict[Key, str] = {}
        """What is there with a score: the hash of the profile by key. What failed is played again."""
        self._places: dict[Key, tuple[int, int]] = {}
        self._lock = lock_folder(path.parent)
        try:
            self._begin(resume)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._lock.release()

    def expect(self, profiles: Iterable[Profile]) -> None:
        """Make sure that the profiles of the log are these. Raises RlverError if one has changed."""
        now = {profile.id: profile_hash(profile) for profile in profiles}
        for (name, _), was in self.scored.items():
            if now.get(name, was) != was:
                raise RlverError(f"{self.path}: was made with another profile {name!r}; {_OTHER}")

    def append(self, dialogue: LoggedDialogue) -> None:
        """Add a dialogue. It is on disk (as far as a killed process is concerned) when this returns."""
        line = (dialogue.model_dump_json() + "\n").encode()
        self._note(dialogue, self._size, len(line))
        self._size += os.write(self._file, line)

    def finish(self, order: Sequence[Key]) -> None:
        """Put the dialogues in this order, each once, and say that the log is whole."""
        part = self.path.with_name(self.path.name + ".part")
        kept = [key for key in order if key in self._places]
        with self.path.open("rb") as source, part.open("wb") as target:
            target.write(source.readline())
            for start, length in (self._places[key] for key in kept):
                source.seek(start)
                target.write(source.read(length))
            target.write((RunEnd(dialogues=len(kept)).model_dump_json() + "\n").encode())
            target.flush()
            os.fsync(target.fileno())
        part.replace(self.path)

    def _begin(self, resume: bool) -> None:
        there = self._whole_lines() if self.path.exists() else 0
        if there and not resume:
            if not _finished(self.path):
                raise RlverError(
                    f"{self.path}: an unfinished benchmark lies there; go on with --resume, or take another --out."
                )
            self.path.replace(self.path.with_name(self.path.name + ".bak"))
            there = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, there)
        self._size = there
        if there:
            self._resume()
        else:
            head = RunHead(config=self.config, hash=self.config.hash, versions=_versions())
            self._size = os.write(self._file, (head.model_dump_json() + "\n").encode())

    def _whole_lines(self) -> int:
        """Length of the file without a last line that was cut off."""
        return self.path.read_bytes().rfind(b"\n") + 1

    def _resume(self) -> None:
        _same(self.path, read_head(self.path).config, self.config)
        at = 0
        with self.path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if record["kind"] == "dialogue":
                    self._note(LoggedDialogue.model_validate(record), at, len(line))
                at += len(line)

    def _note(self, dialogue: LoggedDialogue, start: int, length: int) -> None:
        key = (dialogue.transcript.profile, dialogue.repeat)
        self._places[key] = (start, length)
        if dialogue.transcript.stop.scored:
            self.scored[key] = dialogue.profile_hash


def _versions() -> dict[str, str]:
    found = {name: package_version(name) for name in ("openai", "pydantic")}
    return {"rlver": version(), "python": platform.python_version(), **found}


_OTHER = "take another --out, or the old settings to go on with it."


def _same(path: Path, was: RunConfig, now: RunConfig) -> None:
    before, after = was.model_dump(), now.model_dump()
    changes = [f"{name} was {before[name]!r} and is {after[name]!r}" for name in before if before[name] != after[name]]
    if changes:
        raise RlverError(f"{path}: was made with other settings ({'; '.join(changes)}); {_OTHER}")


def _finished(path: Path) -> bool:
    return path.read_bytes().rstrip().rpartition(b"\n")[2].startswith(b'{"kind":"end"')


def read_head(path: Path) -> RunHead:
    """The settings of a log. Raises RlverError if the file is none."""
    where, record = next(read_objects(path), (str(path), {}))
    try:
        return RunHead.model_validate(record)
    except ValidationError:
        raise RlverError(f"{where}: this is not the log of a benchmark (version 1).") from None


def read_log(path: Path) -> Iterator[LoggedDialogue]:
    """The dialogues of a log, in the order in which they stand there.

    Raises:
        RlverError: a line is broken; the message names it.
    """
    for where, record in _records(path):
        try:
            yield LoggedDialogue.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise RlverError(f"{where}: not a dialogue of a log ({field}: {first['msg']}).") from None


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((where, record) for where, record in read_objects(path) if record.get("kind") == "dialogue")
