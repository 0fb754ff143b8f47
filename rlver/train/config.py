"""The configuration of a training run: one frozen object, written beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.train.settings import AlgorithmSettings, CurriculumSettings, DialogueSettings, ModelSettings, RunSettings


class TrainConfig(RunSettings, CurriculumSettings, AlgorithmSettings, DialogueSettings, ModelSettings):
    """What decides a run. Defaults suit the tiny policy; rates for a 7B model are a thousand times smaller."""

    def rate(self, step: int) -> float:
        """The learning rates at a step (from 0) as a share of their value."""
        left = 1 - max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return min((step + 1) / (self.warmup + 1), self.final_rate + (1 - self.final_rate) * left)


def load_config(file: Path | None, overrides: list[str], options: dict[str, Any]) -> TrainConfig:
    """Defaults, then the YAML file, then named options that are not None, then `key=value` overrides.

    Raises:
        RlverError: an unknown key, a value of the wrong kind, or settings that do not go together.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(read_file(file))
        except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            raise RlverError(f"{file}: not valid YAML ({str(error).splitlines()[0]}).") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise RlverError(f"{file}: a config is a list of `key: value` lines.")
        values |= loaded or {}
    in_file = dict(values)
    values |= {key: value for key, value in options.items() if value is not None}
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RlverError(f"--set {override!r}: write key=value, for example --set lr=5e-4.")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            raise RlverError(f"--set {override!r}: {value!r} is no valid value.") from None
    if values.get("think") and "max_tokens" not in values:
        values["max_tokens"] = 80
    if values.get("algo") == "dr-grpo" and "weighting" not in values:
        values["weighting"] = "constant"
    if values.get("engine", "local") != "local" and "importance_cap" not in values:
        values["importance_cap"] = 2.0
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = f" Known keys: {', '.join(TrainConfig.model_fields)}." if first["type"] == "extra_forbidden" else ""
        name = first["loc"][0] if first["loc"] else ""
        where = file if name in in_file and in_file[name] is values.get(name) else "config"
        raise RlverError(f"{where}: {key}: {first['msg']}.{known}") from None
    get_preset(config.preset)
    if config.batch % config.rollouts:
        raise RlverError(f"config: batch ({config.batch}) must be a multiple of group ({config.group}).")
    if config.algo in ("grpo", "rloo", "dr-grpo") and config.group < 2:
        raise RlverError(f"config: {config.algo} compares the rollouts of a profile, so group must be at least 2.")
    if config.zero_variance != "keep" and config.rollouts < 2:
        raise RlverError(f"config: zero_variance is about groups of rollouts, and {config.algo} has none here.")
    if (config.curriculum == "schedule") != bool(config.schedule):
        raise RlverError("config: curriculum=schedule and schedule={step: share of challenging users} go together.")
    return config
