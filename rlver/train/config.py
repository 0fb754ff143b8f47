"""The configuration of a training run: one frozen object, written beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlver.agents.base import UserType
from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.core.profile import Language


class TrainConfig(BaseModel):
    """What decides a run. Defaults suit the tiny policy; rates for a 7B model are a thousand times smaller."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = "tiny"
    """`tiny` (pretrained on the spot, then kept) or a folder with a Hugging Face causal language model."""
    language: Language = "en"
    user: UserType = "vanilla"
    """Type of the simulated user that the policy trains with."""
    preset: str = "sage"
    """Where emotion starts, how far a reply moves it, when a dialogue ends."""
    profiles: str | None = None
    """File of profiles to train on; by default profiles are generated from the training stories."""
    think: bool = False
    """Whether the policy thinks before it speaks."""
    algo: Literal["grpo", "ppo"] = "grpo"
    credit: Literal["turn", "terminal"] = "turn"
    """`terminal`: the final emotion is the reward of every token (RLVER, section 3). `turn`: the change of emotion
    after each reply is its reward, and tokens get the discounted sum of what follows (arXiv 2603.06194)."""
    seed: int = 0
    steps: int = Field(24, ge=1)
    batch: int = Field(48, ge=1)
    """Dialogues a step."""
    group: int = Field(4, ge=1)
    """Rollouts of one profile a step; GRPO compares them with each other. PPO needs 1 and always uses 1."""
    epochs: int = Field(1, ge=1)
    """Passes over the dialogues of a step."""
    minibatches: int = Field(4, ge=1)
    """Optimizer updates a pass."""
    lr: float = Field(4e-4, gt=0)
    critic_lr: float = Field(2e-3, gt=0)
    warmup: int = Field(4, ge=0)
    """Steps over which the learning rates rise to their value."""
    final_rate: float = Field(0.1, gt=0, le=1)
    """Share of their value to which the learning rates then fall, linearly, until the last step: a small policy wears
    off again what it has learned if they stay high. 1 keeps them."""
    gamma: float = Field(0.5, ge=0, le=1)
    """Discount from one turn to the next for `turn` credit; `terminal` has none, nor have tokens of one turn."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda from one turn to the next."""
    clip: float = Field(0.2, gt=0)
    """PPO's clip range of the probability ratio."""
    value_clip: float = Field(0.5, gt=0)
    """How far the critic's value may move from the one at sampling."""
    kl: float = Field(0.05, ge=0)
    """Weight of the divergence from the starting policy (k3 estimator) in the loss; it keeps replies fluent."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    max_grad_norm: float = Field(1.0, gt=0)
    temperature: float = Field(0.7, gt=0)
    """Of sampling, in training as in the benchmark; log-probs are those of the same temperature. At 1, a tiny model's
    noise drowns what it has learned; use 1 for a large one."""
    max_tokens: int = Field(40, ge=1)
    """Most tokens of one reply, thinking included."""
    micro_tokens: int = Field(4096, ge=1)
    """Most tokens of one forward-backward pass."""
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints."""
    threads: int = Field(1, ge=1)
    """CPU threads of torch. A small model gains little by more, and results are identical only for the same number."""

    def rate(self, step: int) -> float:
        """The learning rates at a step (from 0) as a share of their value."""
        left = 1 - max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return min((step + 1) / (self.warmup + 1), self.final_rate + (1 - self.final_rate) * left)

    @property
    def rollouts(self) -> int:
        """Rollouts per profile in a step."""
        return self.group if self.algo == "grpo" else 1


def load_config(file: Path | None, overrides: list[str], options: dict[str, Any]) -> TrainConfig:
    """Defaults, then the YAML file, then named options that are not None, then `key=value` overrides.

    Raises:
        RlverError: an unknown key, a value of the wrong kind, or settings that do not go together.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(read_file(file))
        except yaml.YAMLError as error:
            raise RlverError(f"{file}: not valid YAML ({str(error).splitlines()[0]}).") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise RlverError(f"{file}: a config is a list of `key: value` lines.")
        values |= loaded or {}
    values |= {key: value for key, value in options.items() if value is not None}
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RlverError(f"--set {override!r}: write key=value, for example --set lr=5e-4.")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RlverError(f"--set {override!r}: {value!r} is no valid value.") from None
    if values.get("think") and "max_tokens" not in values:
        values["max_tokens"] = 80
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = f" Known keys: {', '.join(TrainConfig.model_fields)}." if first["type"] == "extra_forbidden" else ""
        raise RlverError(f"config: {key}: {first['msg']}.{known}") from None
    get_preset(config.preset)
    if config.batch % config.rollouts:
        raise RlverError(f"config: batch ({config.batch}) must be a multiple of group ({config.rollouts}).")
    if config.algo == "grpo" and config.group < 2:
        raise RlverError("config: grpo compares the rollouts of a profile, so group must be at least 2.")
    return config
