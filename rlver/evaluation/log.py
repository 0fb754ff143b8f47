"""The log of a benchmark: a line with the settings, then one line per dialogue, written as soon as the dialogue ends.

The log is only appended to, so that a killed process loses nothing but the dialogues that were in progress. A resumed
log continues after its last complete line. Once all dialogues are in it, it is put in order, so that an interrupted
and resumed benchmark leaves the same bytes as an uninterrupted one.
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
from rlver.core.errors import RlverError, first_problem
from rlver.core.files import lock_folder
from rlver.core.jsonl import read_objects
from rlver.core.profile import Frozen, Language, Profile
from rlver.core.transcript import Transcript
from rlver.llm.usage import Tokens
from rlver.version import source

DialogueKey = tuple[str, int]
"""What identifies a dialogue of a log: the profile's id and the number of the repeat, from 0."""


class RunConfig(Frozen):
    """All settings that decide how a dialogue goes, except the profile and the number of the repeat."""

    policy: str
    """The policy's spec."""
    prompt: str
    """Hash of the policy's system prompt; empty if it has none."""
    think: bool
    """Whether the policy thinks before its replies."""
    temperature: float | None
    """Sampling temperature of the policy; None if it does not sample or leaves the choice to its endpoint."""
    max_tokens: int | None
    """Most tokens of one reply, thinking included; None if the policy sets no limit."""
    top_p: float | None = None
    """Nucleus sampling of a policy behind an endpoint; None leaves the choice to the endpoint."""
    user: str
    """The user's identity, with a hash of everything that decides how the user behaves."""
    user_settings: dict[str, Any] = Field(default_factory=dict)
    """How the language model behind the user is called; empty for other users."""
    preset: str
    """Name of the preset."""
    language: Language
    """Language of the profiles."""
    seed: int
    """Seed of the benchmark."""

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that identify these settings."""
        return digest(self.model_dump_json())


class RunHead(BaseModel):
    """The first line of a log."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["run"] = "run"
    version: Literal[1] = 1
    """Version of the log format."""
    config: RunConfig
    """The settings of the run."""
    hash: str
    """Hash of `config`."""
    versions: dict[str, str]
    """Versions of Python and of the packages that began the log, by name."""


class LoggedDialogue(BaseModel):
    """The line of one dialogue."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["dialogue"] = "dialogue"
    repeat: int
    """Number of the repeat, from 0."""
    profile_hash: str
    """Hash of the profile's contents."""
    usage: dict[str, Tokens] = Field(default_factory=dict)
    """Tokens of the answers that the dialogue used, by endpoint. Answers from the cache count like others."""
    transcript: Transcript
    """The dialogue."""
    seconds: float | None = Field(default=None, exclude=True)
    """Wall-clock time from its beginning to its end. It is not part of the line, because a resumed log equals an
    uninterrupted one; `timing.csv` beside the log holds it."""


class RunEnd(BaseModel):
    """The last line of a complete log."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["end"] = "end"
    dialogues: int
    """Number of dialogues in the log."""


def profile_hash(profile: Profile) -> str:
    """Eight hexadecimal digits that identify the contents of a profile."""
    return digest(profile.model_dump_json())


class RunLog:
    """A log that is open for writing. Use it in a `with` statement.

    Args:
        path: the file. Its folder is locked while the log is open.
        resume: continue an existing log. Without it, an unfinished log is refused and a finished one is renamed to
            `.bak`.

    Raises:
        RlverError: the folder cannot be used, another process is writing to it, or the existing log is unfinished or
            has other settings. The message names the settings that differ.
    """

    def __init__(self, path: Path, config: RunConfig, resume: bool = False) -> None:
        self.path, self.config = path, config
        self.scored: dict[DialogueKey, str] = {}
        """The hash of the profile of each dialogue that has a score. Failed dialogues are played again."""
        self._spans: dict[DialogueKey, tuple[int, int]] = {}
        """Start and length of each dialogue's newest line, in bytes."""
        self._lock = lock_folder(path.parent)
        try:
            self._open(resume)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._lock.release()

    def check_profiles(self, profiles: Iterable[Profile]) -> None:
        """Check that scored dialogues were played with these profiles. Raises RlverError if one has changed."""
        hashes = {profile.id: profile_hash(profile) for profile in profiles}
        for (profile_id, _), logged_hash in self.scored.items():
            if hashes.get(profile_id, logged_hash) != logged_hash:
                raise RlverError(f"{self.path}: was made with another profile {profile_id!r}; {_CHANGE_ADVICE}")

    def append(self, dialogue: LoggedDialogue) -> None:
        """Add a dialogue. When this returns, a kill of the process cannot lose the line any more."""
        line = (dialogue.model_dump_json() + "\n").encode()
        self._index(dialogue, self._size, len(line))
        self._size += os.write(self._file, line)

    def finish(self, order: Sequence[DialogueKey]) -> None:
        """Rewrite the log with the newest line of each dialogue, in this order, and mark it as complete."""
        part = self.path.with_name(self.path.name + ".part")
        keys = [key for key in order if key in self._spans]
        with self.path.open("rb") as source, part.open("wb") as target:
            target.write(source.readline())
            for start, length in (self._spans[key] for key in keys):
                source.seek(start)
                target.write(source.read(length))
            target.write((RunEnd(dialogues=len(keys)).model_dump_json() + "\n").encode())
            target.flush()
            os.fsync(target.fileno())
        part.replace(self.path)

    def _open(self, resume: bool) -> None:
        size = _size_of_complete_lines(self.path) if self.path.exists() else 0
        if size and not resume:
            if not _is_finished(self.path):
                raise RlverError(
                    f"{self.path}: this benchmark is unfinished; continue it with --resume, or choose another --out."
                )
            self.path.replace(self.path.with_name(self.path.name + ".bak"))
            size = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, size)
        self._size = size
        if size:
            self._load()
        else:
            head = RunHead(config=self.config, hash=self.config.hash, versions=_versions())
            self._size = os.write(self._file, (head.model_dump_json() + "\n").encode())

    def _load(self) -> None:
        """Read the dialogues of an existing log. Raises RlverError if it has other settings."""
        _check_config(self.path, read_head(self.path).config, self.config)
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if record["kind"] == "dialogue":
                    self._index(LoggedDialogue.model_validate(record), start, len(line))
                start += len(line)

    def _index(self, dialogue: LoggedDialogue, start: int, length: int) -> None:
        key = (dialogue.transcript.profile, dialogue.repeat)
        self._spans[key] = (start, length)
        if dialogue.transcript.stop.scored:
            self.scored[key] = dialogue.profile_hash


def read_head(path: Path) -> RunHead:
    """The first line of a log. Raises RlverError if the file is not a log."""
    where, record = next(read_objects(path), (str(path), {}))
    try:
        return RunHead.model_validate(record)
    except ValidationError:
        raise RlverError(f"{where}: this is not the log of a benchmark (version 1).") from None


def read_log(path: Path) -> Iterator[LoggedDialogue]:
    """Yield the dialogues of a log in the order of their lines.

    Raises:
        RlverError: a line is broken; the message names file, line and field.
    """
    for where, record in read_objects(path):
        if record.get("kind") != "dialogue":
            continue
        try:
            yield LoggedDialogue.model_validate(record)
        except ValidationError as error:
            raise RlverError(f"{where}: not a dialogue of a log ({first_problem(error)}).") from None


_CHANGE_ADVICE = "choose another --out, or the earlier settings to continue it."


def _check_config(path: Path, logged: RunConfig, current: RunConfig) -> None:
    """Raise RlverError if the settings of a log differ from the current ones."""
    before, after = logged.model_dump(), current.model_dump()
    changes = [f"{name} was {before[name]!r} and is {after[name]!r}" for name in before if before[name] != after[name]]
    if changes:
        raise RlverError(f"{path}: was made with other settings ({'; '.join(changes)}); {_CHANGE_ADVICE}")


def _size_of_complete_lines(path: Path) -> int:
    """Bytes of the file without a last line that was cut off."""
    return path.read_bytes().rfind(b"\n") + 1


def _is_finished(path: Path) -> bool:
    return path.read_bytes().rstrip().rpartition(b"\n")[2].startswith(b'{"kind":"end"')


def _versions() -> dict[str, str]:
    packages = {name: package_version(name) for name in ("openai", "pydantic")}
    return {**source(), "python": platform.python_version(), **packages}
