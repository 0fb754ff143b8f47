"""The simulated users that a run trains with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.llm import LLM, parse_endpoint
from rlver.llm.endpoint import is_endpoint
from rlver.train.config import TrainConfig
from rlver.users.load import load_user


def users_of(config: TrainConfig) -> Mapping[UserType, User]:
    """One user for each type that the run may meet; they phrase their hints as in training.

    Raises:
        RlverError: there is no such simulator, or nobody to wait for.
    """
    if config.simulator == "human":
        raise RlverError("config: simulator=human: nobody has that much patience; `rlver chat` is for people.")
    types = (config.user,) if config.curriculum == "none" else get_args(UserType)
    if is_endpoint(config.simulator):
        client = LLM(parse_endpoint(config.simulator))
    return {
        kind: load_user(config.simulator, config.language, user_type=kind, phrasing="train", connect=lambda _: client)
        for kind in types
    }
