"""Seeds derived from seeds: each random draw of a run depends on the run's seed and on the place of the draw."""

from __future__ import annotations

from hashlib import sha256


def derive(*parts: object) -> int:
    """A 48-bit seed that depends on all parts, the same on every machine and in every process."""
    return int.from_bytes(sha256("/".join(map(str, parts)).encode()).digest()[:6], "big")
