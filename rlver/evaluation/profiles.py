"""The profiles that a benchmark, a dialogue or a server runs on."""

from __future__ import annotations

from collections.abc import Sequence
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


def find_profile(name: str, files: Sequence[Path] = ()) -> Profile:
    """The profile with that id, from files or, without any, from the generator that made the id.

    Raises:
        RlverError: there is none.
    """
    generated = None if files else regenerate(name)
    profiles = [profile for file in files for profile in read_profiles(file)] + ([generated] if generated else [])
    for profile in profiles:
        if profile.id == name:
            return profile
    where = ", ".join(map(str, files)) or "the built-in profiles"
    raise RlverError(f"there is no profile {name!r} in {where}; `rlver profiles list` prints the ids.")
