"""The profiles that a benchmark, a dialogue or a server runs on."""

from __future__ import annotations

from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.profile import Language, Profile
from rlver.formats.profile_files import read_profiles
from rlver.stories import benchmark_profiles
from rlver.stories.generate import regenerate


def load_profiles(language: Language, path: Path | None = None) -> list[Profile]:
    """The profiles of a file, ours or official, or the built-in benchmark.

    Raises:
        RlverError: the file is missing or broken, or holds a profile of another language.
    """
    if path is None:
        return benchmark_profiles(language)
    profiles = read_profiles(path)
    for profile in profiles:
        if profile.language != language:
            raise RlverError(
                f"{path}: the profile {profile.id!r} speaks {profile.language!r}, not {language!r}; "
                f"say --language {profile.language}."
            )
    return profiles


def find_profile(name: str, path: Path | None = None) -> Profile:
    """The profile of that id, from the file or, without one, from the generator that gave it the id.

    Raises:
        RlverError: there is none.
    """
    generated = None if path else regenerate(name)
    candidates = read_profiles(path) if path else [generated] if generated else []
    for profile in candidates:
        if profile.id == name:
            return profile
    where = str(path) if path else "the built-in profiles"
    raise RlverError(f"there is no profile {name!r} in {where}; `rlver profiles list` shows what there is.")
