"""JSON lines: one object per line, UTF-8, written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlver.core.errors import RlverError
from rlver.core.files import read_file


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE:LINE", object) for each line that is not blank.

    Raises:
        RlverError: the file is missing or not UTF-8 text, or a line is not a JSON object.
    """
    text = read_file(path)
    # Not splitlines(): it splits at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise RlverError(f"{where}: this line is not valid JSON ({error.msg} at column {error.colno}).") from None
        except (RecursionError, ValueError):
            raise RlverError(f"{where}: this line is not valid JSON (nested too deep, or a number too long).") from None
        if not isinstance(record, dict):
            raise RlverError(f"{where}: this line must be a JSON object, not {type(record).__name__}.")
        yield where, record


def write_objects(path: Path, objects: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Write objects, one per line, and return their number. An existing file is replaced once all are written.

    Raises:
        RlverError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for item in objects:
                line = item.model_dump_json() if isinstance(item, BaseModel) else json.dumps(item, ensure_ascii=False)
                file.write(line + "\n")
                count += 1
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RlverError(f"{path}: cannot be written ({error.strerror}).") from None
    return count
