"""Files and folders that a user names, with one-sentence errors for those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlver.core.errors import RlverError

LOCK = ".lock"
"""Name of the file that marks a folder as in use."""


def read_file(path: Path) -> str:
    """The text of a file that a user named. Raises RlverError if it is missing or not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RlverError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RlverError(f"{path}: cannot be read as UTF-8 text ({error}).") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, replacing an older one. Raises OSError if it cannot be written."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def lock_folder(folder: Path) -> FileLock:
    """Create the folder if necessary and lock it until the lock is released or this process ends.

    Raises:
        RlverError: another process has locked it, or it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RlverError(f"{folder}: another process is writing to this folder.") from None
    except OSError as error:
        raise RlverError(f"{folder}: cannot be used as a folder ({error.strerror}).") from None
    return lock


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """The folder exists and is locked for the length of the `with` block. Raises RlverError as `lock_folder` does."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.release()
