"""RLVER: train and evaluate emotionally intelligent dialogue models with verifiable emotion rewards.

    import rlver

    evaluation = rlver.evaluate("scripted:hedge", user="vanilla", n=20)
    print(evaluation.score, evaluation.ci95)

Names are imported when they are first used, so `import rlver` loads neither torch nor a data file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlver.api import (
        embedded_user,
        evaluate,
        generate_profiles,
        llm_user,
        load_policy,
        load_profiles,
        load_run,
        play,
        train,
    )
    from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply
    from rlver.core.emotion import Preset
    from rlver.core.errors import CallFailed, RlverError
    from rlver.core.interfaces import Policy, User
    from rlver.core.profile import Profile
    from rlver.train.config import TrainConfig

_HOMES = {
    "rlver.api": (
        "embedded_user",
        "evaluate",
        "generate_profiles",
        "llm_user",
        "load_policy",
        "load_profiles",
        "load_run",
        "play",
    ),
    "rlver.core.dialogue": ("Dialogue", "Opening", "Reaction", "Reply"),
    "rlver.core.emotion": ("Preset",),
    "rlver.core.errors": ("CallFailed", "RlverError"),
    "rlver.core.interfaces": ("Policy", "User"),
    "rlver.core.profile": ("Profile",),
    "rlver.train.config": ("TrainConfig",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  # by what they are for
    "evaluate",
    "play",
    "train",
    "load_run",
    "Profile",
    "load_profiles",
    "generate_profiles",
    "Policy",
    "load_policy",
    "User",
    "embedded_user",
    "llm_user",
    "Dialogue",
    "Opening",
    "Reaction",
    "Reply",
    "Preset",
    "TrainConfig",
    "CallFailed",
    "RlverError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("rlver.version").version()
    if name == "train":
        return import_module("rlver.train")  # the package can be called
    if name not in _HOME_OF:
        raise AttributeError(f"module 'rlver' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *globals()})
