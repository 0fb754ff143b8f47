"""The simulated users of a run, and the profiles that they play."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.core.profile import Language, Profile
from rlver.formats.profile_files import read_profiles
from rlver.llm import LLM, parse_endpoint
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig
from rlver.users.load import load_user

EVALUATION_SEED = 2509
"""The seed of the profiles of evaluations and of everything random in their dialogues."""


def training_users(config: TrainConfig) -> Mapping[UserType, User]:
    """One user for each user type that the run can draw. They phrase their hints as the training split does.

    Raises:
        RlverError: the endpoint in `config.user` cannot be used.
    """
    connect = cache(lambda spec: LLM(parse_endpoint(spec)))  # all users share one client
    return {
        user_type: load_user(config.user, config.language, user_type=user_type, phrasing="train", connect=connect)
        for user_type in config.user_types
    }


def training_profiles(config: TrainConfig) -> list[Profile] | None:
    """The profiles of the file that the run trains on; None if they are generated.

    Raises:
        RlverError: the file is broken, or a profile is in another language or cannot be played by the user.
    """
    if not config.profiles:
        return None
    return _read(config.profiles, config.language, embedded=config.user == "embedded")


def evaluation_profiles(config: TrainConfig) -> list[Profile]:
    """The `eval_n` profiles of an evaluation, from the file or generated from the validation stories.

    Raises:
        RlverError: the file is broken or holds too few profiles, or a profile is in another language or for chit-chat.
    """
    if config.eval_profiles is None:
        return generate(config.language, "validation", config.eval_n, EVALUATION_SEED)
    profiles = _read(config.eval_profiles, config.language, embedded=True)
    if len(profiles) < config.eval_n:
        raise RlverError(f"{config.eval_profiles}: holds {len(profiles)} profiles, fewer than eval_n={config.eval_n}.")
    return profiles[: config.eval_n]


def _read(file: str, language: Language, embedded: bool) -> list[Profile]:
    """Read profiles. If `embedded`, all must be emotional-support profiles, which the embedded user can play."""
    profiles = read_profiles(Path(file))
    if embedded:
        for profile in profiles:
            profile.need  # noqa: B018  # raises for a chit-chat profile
    if any(profile.language != language for profile in profiles):
        raise RlverError(f"{file}: holds profiles that are not in {language!r}; set --language.")
    return profiles
