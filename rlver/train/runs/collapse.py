"""Detecting a collapse: rules that distinguish a policy that has collapsed from one that learns or is merely noisy.

A limit must be exceeded for a window of consecutive steps, so that the spikes of single steps do not count. The policy
must have kept the limit at first, so that what was bad from the start is no collapse. A metric that is not finite
counts at once, because no later step can repair the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from rlver.train.config import TrainConfig

_MUST_BE_FINITE = ("loss", "kl", "entropy", "grad_norm", "value_loss")
_MIN_REWARD_DROP = 0.1
"""How far the reward (0-1) must also have dropped in absolute terms: half of almost nothing is noise."""


class Collapse(NamedTuple):
    """What collapsed, and when."""

    sentence: str
    """Which metric changed from what to what, and at which step."""
    healthy: int
    """The last step whose weights showed no sign of the collapse."""


class Collapsed(Exception):
    """The run stopped because its policy had collapsed, and has saved its state. The message is meant for users."""


class CollapseWatch:
    """Checks the metrics of each step against the limits of the settings.

    Args:
        reward: whether a drop of the reward counts.
    """

    def __init__(self, config: TrainConfig, *, reward: bool = True) -> None:
        self._window, self._patience = config.collapse_window, config.collapse_patience
        self._min_reward = config.collapse_reward if reward else 0.0
        self._ceilings = {
            "kl": (config.collapse_kl, "nats a token"),
            "repeated_replies": (config.collapse_repeated, "of the replies"),
            "bad_format": (config.collapse_bad_format, "of the dialogues"),
        }
        self._min_entropy = config.collapse_entropy
        self._step = 0
        self._first: dict[str, float] = {}
        """The best value of each metric in the first window."""
        self._violations: dict[str, int] = {}
        """For each metric, the number of consecutive steps beyond its limit."""
        self._rewards: deque[float] = deque(maxlen=self._window)
        self._best_reward = 0.0
        """Best mean reward over a window."""
        self.collapse: Collapse | None = None
        ceilings = [ceiling for ceiling, _ in self._ceilings.values()]
        self._limits = [self._window, self._patience, self._min_reward, self._min_entropy, *ceilings]

    def observe(self, metrics: Mapping[str, float]) -> Collapse | None:
        """Check the metrics of the next step. Returns the collapse if the policy has collapsed."""
        self._step += 1
        for name in _MUST_BE_FINITE:
            if name in metrics and not isfinite(metrics[name]):
                return self._collapse(f"{name} became {metrics[name]} at step {self._step}", 1)
        for name in ("entropy", *self._ceilings):
            if name in metrics and (collapse := self._check_limit(name, metrics[name])):
                return collapse
        return self._check_reward(metrics["reward"]) if self._min_reward and "reward" in metrics else None

    @property
    def memory(self) -> int:
        """How many steps back a healthy checkpoint can be needed after a limit was exceeded."""
        return self._window + 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next check depends on, as JSON values."""
        return {
            "step": self._step,
            "first": self._first,
            "beyond": self._violations,
            "rewards": list(self._rewards),
            "best": self._best_reward,
            "verdict": self.collapse,
            "limits": self._limits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._step, self._best_reward = state["step"], state["best"]
        self._first, self._violations = dict(state["first"]), dict(state["beyond"])
        self._rewards.extend(state["rewards"])
        # With other limits, an earlier collapse no longer counts.
        if state["verdict"] and state["limits"] == self._limits:
            self.collapse = Collapse(*state["verdict"])

    def _check_limit(self, name: str, value: float) -> Collapse | None:
        is_floor = name == "entropy"
        best = max if is_floor else min
        if self._step <= self._window:
            self._first[name] = best(self._first.get(name, value), value)
        first = self._first.get(name, value)
        limit, unit = (self._min_entropy * first, "nats a token") if is_floor else self._ceilings[name]
        kept_at_first = is_floor or first <= limit
        violated = kept_at_first and (value < limit if is_floor else value > limit)
        if not self._persists(name, violated, self._window):
            return None
        verb, side = ("fell", "under") if is_floor else ("rose", "over")
        return self._collapse(
            f"{name} {verb} from {first:.3g} to {value:.3g} {unit} at step {self._step}, for {self._window} steps "
            f"{side} the limit of {limit:.3g}",
            self._window,
        )

    def _check_reward(self, reward: float) -> Collapse | None:
        self._rewards.append(reward)
        if len(self._rewards) < self._window:
            return None
        mean = fmean(self._rewards)
        self._best_reward = max(self._best_reward, mean)
        violated = mean < self._min_reward * self._best_reward and self._best_reward - mean > _MIN_REWARD_DROP
        if not self._persists("reward", violated, self._patience):
            return None
        return self._collapse(
            f"reward fell from {self._best_reward:.3g} to {mean:.3g} (means over {self._window} steps) at step "
            f"{self._step}, for {self._patience} steps under {self._min_reward:.0%} of its best",
            self._patience + self._window - 1,
        )

    def _persists(self, name: str, violated: bool, steps: int) -> bool:
        """Count consecutive violations. Returns whether there are enough."""
        self._violations[name] = self._violations.get(name, 0) + 1 if violated else 0
        return self._violations[name] >= steps

    def _collapse(self, sentence: str, steps: int) -> Collapse:
        # The metrics of a step belong to the weights before it, so the first bad step was played by bad weights.
        self.collapse = Collapse(sentence, max(0, self._step - steps - 1))
        return self.collapse
