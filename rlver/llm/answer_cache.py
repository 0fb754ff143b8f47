"""Answers on disk, found by the hash of the whole request. Several processes may share one file.

SQLite in write-ahead mode does all of it: the usual cache libraries store pickles, which a shared file must not.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlver.core.errors import RlverError


class Cache:
    """A table of answers. Whoever writes the same request first wins; no answer is ever overwritten."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A kill loses nothing; only a power cut may lose the last answers, which are then asked for again.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise RlverError(f"{path}: cannot be used as a cache of answers ({error}).") from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to the request with this hash."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        text = json.dumps(answer, ensure_ascii=False)
        self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))

    def drop(self, key: str) -> None:
        """Forget an answer that turned out to be of no use."""
        self._db.execute("DELETE FROM answers WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def request_key(request: Mapping[str, Any]) -> str:
    """The hash of a request: model, address, messages and every sampling parameter, but never a key."""
    return sha256(json.dumps(request, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()
