"""When to give up: rules that tell a policy that has collapsed from one that is learning or merely noisy.

A limit must be broken for a window of steps in a row, so that the spikes of single steps count for nothing, and the
policy must have kept it at first, so that what is bad from the start is no collapse. Numbers that are not finite
count at once: no later step can mend the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from rlver.train.config import TrainConfig

_FINITE = ("loss", "kl", "entropy", "grad_norm", "value_loss")
_LEAST_FALL = 0.1
"""How far the reward (0-1) must have fallen, besides to a share of its best: little of almost nothing is noise."""


class Verdict(NamedTuple):
    """What collapsed."""

    sentence: str
    """Which metric, from what to what, at which step."""
    healthy: int
    """The last step whose weights showed no sign of it yet."""


class Collapsed(Exception):
    """The run stopped because its policy had collapsed, and has saved its state. The message is what to tell."""


class CollapseWatch:
    """Follows the metrics of a run. `reward`: whether a fall of the reward counts."""

    def __init__(self, config: TrainConfig, *, reward: bool = True) -> None:
        self._window, self._patience = config.collapse_window, config.collapse_patience
        self._fall = config.collapse_reward if reward else 0.0
        self._ceilings = {
            "kl": (config.collapse_kl, "nats a token"),
            "repeated_replies": (config.collapse_repeated, "of the replies"),
            "bad_format": (config.collapse_bad_format, "of the dialogues"),
        }
        self._floor = config.collapse_entropy
        self._step = 0
        self._first: dict[str, float] = {}
        """The best value of the first steps."""
        self._beyond: dict[str, int] = {}
        """Steps in a row that broke a limit."""
        self._rewards: deque[float] = deque(maxlen=self._window)
        self._best = 0.0
        """Best mean reward over a window."""
        self.verdict: Verdict | None = None
        self._limits = [self._window, self._patience, self._fall, self._floor, *(c for c, _ in self._ceilings.values())]

    def take(self, metrics: Mapping[str, float]) -> Verdict | None:
        """Count a step, and say whether the policy has collapsed."""
        self._step += 1
        for name in _FINITE:
            if name in metrics and not isfinite(metrics[name]):
                return self._judge(f"{name} became {metrics[name]} at step {self._step}", 1)
        for name in ("entropy", *self._ceilings):
            if name in metrics and (verdict := self._limit(name, metrics[name])):
                return verdict
        return self._reward(metrics["reward"]) if self._fall and "reward" in metrics else None

    def _limit(self, name: str, value: float) -> Verdict | None:
        floor = name == "entropy"
        best = max if floor else min
        if self._step <= self._window:
            self._first[name] = best(self._first.get(name, value), value)
        first = self._first.get(name, value)
        limit, unit = (self._floor * first, "nats a token") if floor else self._ceilings[name]
        kept_at_first = floor or first <= limit
        if not self._broken(name, kept_at_first and (value < limit if floor else value > limit), self._window):
            return None
        verb, side = ("fell", "under") if floor else ("rose", "over")
        return self._judge(
            f"{name} {verb} from {first:.3g} to {value:.3g} {unit} at step {self._step}, for {self._window} steps "
            f"{side} the limit of {limit:.3g}",
            self._window,
        )

    def _reward(self, reward: float) -> Verdict | None:
        self._rewards.append(reward)
        if len(self._rewards) < self._window:
            return None
        mean = fmean(self._rewards)
        self._best = max(self._best, mean)
        low = mean < self._fall * self._best and self._best - mean > _LEAST_FALL
        if not self._broken("reward", low, self._patience):
            return None
        return self._judge(
            f"reward fell from {self._best:.3g} to {mean:.3g} (means over {self._window} steps) at step {self._step}, "
            f"for {self._patience} steps under {self._fall:.0%} of its best",
            self._patience + self._window - 1,
        )

    def _broken(self, name: str, now: bool, patience: int) -> bool:
        self._beyond[name] = self._beyond.get(name, 0) + 1 if now else 0
        return self._beyond[name] >= patience

    def _judge(self, sentence: str, steps: int) -> Verdict:
        # The metrics of a step tell of the weights before it, so the first bad step was played by bad weights.
        self.verdict = Verdict(sentence, max(0, self._step - steps - 1))
        return self.verdict

    @property
    def memory(self) -> int:
        """For how many steps back a checkpoint may be asked for that shows no sign of a collapse by a limit."""
        return self._window + 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next verdict depends on, for JSON."""
        return {
            "step": self._step,
            "first": self._first,
            "beyond": self._beyond,
            "rewards": list(self._rewards),
            "best": self._best,
            "verdict": self.verdict,
            "limits": self._limits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._step, self._best = state["step"], state["best"]
        self._first, self._beyond = dict(state["first"]), dict(state["beyond"])
        self._rewards.extend(state["rewards"])
        # Whoever goes on with other limits does not want to hear the old verdict again.
        if state["verdict"] and state["limits"] == self._limits:
            self.verdict = Verdict(*state["verdict"])
