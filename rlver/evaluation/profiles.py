"""Finds the profiles of a benchmark, a dialogue or a server: in a file, or among the built-in ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.profile import Language, Profile
from rlver.formats.profile_files import read_profiles
from rlver.stories import benchmark_profiles
from rlver.stories.generate import regenerate


def load_profiles(language: Language, path: Path | None = None) -> list[Profile]:
    """The profiles of a file in our format or in the official one, or those of the built-in benchmark.

    Args:
        path: the file; None means the built-in benchmark.

    Raises:
        RlverError: the file is missing or broken, or has a profile in another language.
    """
    if path is None:
        return benchmark_profiles(language)
    profiles = read_profiles(path)
    for profile in profiles:
        if profile.language != language:
            raise RlverError(
                f"{path}: the language of profile {profile.id!r} is {profile.language!r}, not {language!r}; "
                f"add --language {profile.language}."
            )
    return profiles


def find_profile(name: str, files: Sequence[Path] = ()) -> Profile:
    """The profile with this id.

    Args:
        files: files of profiles; without any, the profile is generated again from its id.

    Raises:
        RlverError: a file is missing or broken, or there is no such profile.
    """
    if files:
        candidates = [profile for file in files for profile in read_profiles(file)]
        profile = next((profile for profile in candidates if profile.id == name), None)
    else:
        profile = regenerate(name)
    if profile is None:
        source = ", ".join(map(str, files)) or "the built-in profiles"
        raise RlverError(f"there is no profile {name!r} in {source}; `rlver profiles list` prints the ids.")
    return profile
