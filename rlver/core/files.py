"""Reading files that somebody named: one sentence where it cannot be done."""

from __future__ import annotations

from pathlib import Path

from rlver.core.errors import RlverError


def read_file(path: Path) -> str:
    """The text of a file that somebody named. Raises RlverError if it is missing or no UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RlverError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RlverError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
