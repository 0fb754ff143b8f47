"""What the judge's cues mean, in words for people."""

from __future__ import annotations

from rlver.core.data import read_yaml
from rlver.core.profile import Language


def explanation(cue: str, language: Language) -> str:
    """A sentence part for a cue, such as "its tone is warm". A cue without one, from another judge, gives its name."""
    texts: dict[str, dict[Language, str]] = read_yaml("rlver.users.embedded", "data/cues.yaml")
    return texts[cue][language] if cue in texts else cue
