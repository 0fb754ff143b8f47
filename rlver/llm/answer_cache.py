"""A cache of answers on disk, keyed by the hash of the whole request. Several processes may share one file.

It is SQLite in write-ahead mode. The usual cache libraries store pickles, and unpickling a shared file can run code.
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
    """A table of answers. An answer is never overwritten: of several to the same request, the first one stays.

    Raises:
        RlverError: the file cannot be used as a cache.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing. A power cut may lose the last answers, which only costs new requests.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise RlverError(f"{path}: cannot be used as a cache of answers ({error}).") from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to the request with this key; None if there is none."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Store an answer."""
        text = json.dumps(answer, ensure_ascii=False)
        self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))

    def drop(self, key: str) -> None:
        """Delete an answer that turned out to be unusable."""
        self._db.execute("DELETE FROM answers WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def request_key(request: Mapping[str, Any]) -> str:
    """The key of a request in the cache: a hash of model, address, messages and every sampling parameter.

    An API key is never a part of it.
    """
    return sha256(json.dumps(request, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()
