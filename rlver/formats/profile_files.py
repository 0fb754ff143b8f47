"""Files of profiles: JSON lines in our format, in the official one, or in both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects, write_objects
from rlver.core.profile import Profile, parse_profile
from rlver.formats.sage_profiles import is_official_profile, parse_official_profile


def read_profiles(path: Path) -> list[Profile]:
    """Read profiles. The fields of each line tell our format from the official one.

    Raises:
        RlverError: the file is missing or empty, or a line is broken; the message names file and line.
    """
    profiles: dict[str, Profile] = {}
    for where, record in read_objects(path):
        parse = parse_official_profile if is_official_profile(record) else parse_profile
        profile = parse(record, where)
        if profile.id in profiles:
            raise RlverError(f"{where}: an earlier line has the id {profile.id!r}, too; ids must be unique.")
        profiles[profile.id] = profile
    if not profiles:
        raise RlverError(f"{path}: no profiles in this file.")
    return list(profiles.values())


def write_profiles(path: Path, profiles: Iterable[Profile]) -> int:
    """Write profiles in our format, replacing the file, and return their number."""
    return write_objects(path, profiles)
