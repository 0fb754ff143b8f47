"""The profiles that a run trains with and is evaluated on."""

from __future__ import annotations

from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.profile import Language, Profile
from rlver.formats.profile_files import read_profiles
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig

EVALUATION_SEED = 2509
"""Draws the profiles of evaluations, and all that is drawn in their dialogues."""


def profiles_of(config: TrainConfig) -> list[Profile] | None:
    """The profiles of the file that the run trains on; None if they are generated.

    Raises:
        RlverError: the file is broken, or its profiles are in another language or none that the user can play.
    """
    if not config.profiles:
        return None
    return _read(config.profiles, config.language, support=config.simulator == "embedded")


def evaluation_profiles(config: TrainConfig) -> list[Profile]:
    """The `eval_n` profiles of an evaluation, from the file or of the validation stories.

    Raises:
        RlverError: the file is broken, holds too few profiles, some in another language, or chit chats.
    """
    if config.eval_profiles is None:
        return generate(config.language, "validation", config.eval_n, EVALUATION_SEED)
    profiles = _read(config.eval_profiles, config.language, support=True)
    if len(profiles) < config.eval_n:
        raise RlverError(f"{config.eval_profiles}: holds {len(profiles)} profiles, fewer than eval_n={config.eval_n}.")
    return profiles[: config.eval_n]


def _read(file: str, language: Language, support: bool) -> list[Profile]:
    """Args: support: whether all must be talks that the embedded user can play."""
    profiles = read_profiles(Path(file))
    if support:
        for profile in profiles:
            profile.need  # noqa: B018  # raises for others
    if any(profile.language != language for profile in profiles):
        raise RlverError(f"{file}: holds profiles that are not in {language!r}; set --language.")
    return profiles
