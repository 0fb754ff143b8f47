"""Reads runs from files: logs of `rlver bench`, transcripts, or official transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.transcript import Transcript, read_transcripts
from rlver.formats.sage_transcripts import is_official_transcript, parse_official_transcript


def read_runs(paths: Iterable[Path]) -> dict[str, list[Transcript]]:
    """Read files of any of the three formats, which are recognised by their fields. Each policy in a file is a run.

    A run has the name of its policy, and a run of official transcripts that of its file. If that name is taken, it is
    prefixed with the name of the file, then also with that of the folder, then with numbers.

    Raises:
        RlverError: a file is missing, broken or empty.
    """
    runs: dict[str, list[Transcript]] = {}
    for path in paths:
        by_policy: dict[str, list[Transcript]] = {}
        for transcript in read_any_transcripts(path):
            by_policy.setdefault(transcript.policy, []).append(transcript)
        if not by_policy:
            raise RlverError(f"{path}: no dialogues in this file.")
        for policy, transcripts in by_policy.items():
            name = policy
            for prefix in (path.stem, path.parent.name, *map(str, range(2, 1000))):
                if name not in runs:
                    break
                name = f"{prefix}/{name}"
            runs[name] = transcripts
    return runs


def read_any_transcripts(path: Path) -> list[Transcript]:
    """The transcripts of a file of any of the three formats. Raises RlverError for a broken line."""
    for _, record in read_objects(path):
        if not is_official_transcript(record):
            return read_transcripts(path)
        break
    return [parse_official_transcript(record, where, path.stem)[0] for where, record in read_objects(path)]
