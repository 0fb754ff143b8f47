"""Options that several commands share, each with its one sentence of help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.core.profile import Language, Profile
from rlver.formats.profile_files import read_profiles

LanguageOption = Annotated[Language, typer.Option("--language", help="Language of the talks.")]
_USER_TYPES = "Vanilla users hint at what they need; challenging ones never do and want more."
UserOption = Annotated[UserType, typer.Option("--user", help=_USER_TYPES)]
UserTypeOption = Annotated[UserType, typer.Option("--user-type", help=_USER_TYPES)]
"""Where --user says who plays the user."""
PresetOption = Annotated[
    str, typer.Option("--preset", help=f"Rules of the emotion and of the talk's end: {', '.join(PRESETS)}.")
]
ProfilesOption = Annotated[
    Path | None,
    typer.Option("--profiles", help="JSONL file of profiles, ours or official; default: the 100 held-out ones."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Everything random is drawn from this number.")]
DEVICE_HELP = "Where a local model computes: cpu, cuda, cuda:1, mps; auto: a GPU if there is one, for a large model."
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to standard output.")]


def load_profiles(language: Language, path: Path | None) -> list[Profile]:
    """The profiles of a file, or the built-in benchmark.

    Raises:
        RlverError: the file is missing or broken, or holds a profile of another language.
    """
    if path is None:
        from rlver.stories import benchmark_profiles

        return benchmark_profiles(language)
    profiles = read_profiles(path)
    for profile in profiles:
        if profile.language != language:
            raise RlverError(
                f"{path}: the profile {profile.id!r} speaks {profile.language!r}, not {language!r}; "
                f"say --language {profile.language}."
            )
    return profiles


def find_profile(name: str, path: Path | None) -> Profile:
    """The profile of that id, from the file or, without one, from the generator that gave it the id.

    Raises:
        RlverError: there is none.
    """
    from rlver.stories.generate import regenerate

    generated = None if path else regenerate(name)
    found: Sequence[Profile] = read_profiles(path) if path else [generated] if generated else []
    for profile in found:
        if profile.id == name:
            return profile
    where = str(path) if path else "the built-in profiles"
    raise RlverError(f"there is no profile {name!r} in {where}; `rlver profiles list` shows what there is.")
