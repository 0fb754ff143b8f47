"""Files and folders that somebody named: one sentence where they cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlver.core.errors import RlverError

LOCK = ".lock"
"""File by which a process holds a folder."""


def read_file(path: Path) -> str:
    """The text of a file that somebody named. Raises RlverError if it is missing or no UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RlverError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RlverError(f"{path}: cannot be read as UTF-8 text ({error}).") from None


def lock_folder(folder: Path) -> FileLock:
    """Make the folder, if it is not there, and hold it until the lock is released or this process ends.

    Raises:
        RlverError: another process holds it, or it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RlverError(f"{folder}: another process is writing there.") from None
    except OSError as error:
        raise RlverError(f"{folder}: cannot be used as a folder ({error.strerror}).") from None
    return lock


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, the folder is there and ours alone. Raises RlverError as `lock_folder` does."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.release()
