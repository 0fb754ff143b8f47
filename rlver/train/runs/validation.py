"""Evaluation during a run: how well the policy does with users that it does not train with.

These users belong to the *validation* split: neither training nor the benchmark uses their stories or hints. Whatever
is chosen by looking at an evaluation (the best policy of a run, when to stop, settings) has been fitted to these users,
and its score on them is too high. The users of the benchmark are therefore reserved for the measurement at the end.
Profiles and seeds are fixed, so that all evaluations of all runs use the same users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from rlver.core.data import digest
from rlver.core.interfaces import UserType
from rlver.evaluation.benchmark import run_benchmark
from rlver.evaluation.statistics import summarise
from rlver.policies.local import LocalPolicy
from rlver.train.config import TrainConfig
from rlver.train.runs.participants import EVALUATION_SEED, evaluation_profiles
from rlver.users.embedded.user import EmbeddedUser

PREFIX = "eval/"
"""Begins the names of all metrics of evaluations."""


class Score(NamedTuple):
    """Mean final score of an evaluation, 0-100, with its 95 % interval clustered by profile."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


class Evaluator:
    """Evaluates a policy with held-out users: vanilla ones, and those of the type that it trains with."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._profiles = evaluation_profiles(config)
        types: tuple[UserType, ...] = ("vanilla", config.user_type)
        if config.curriculum != "none":
            types = get_args(UserType)
        self._users = {user_type: EmbeddedUser(config.language, user_type, "validation") for user_type in types}

    @property
    def facts(self) -> dict[str, Any]:
        """What the scores depend on, for the run's config file."""
        return {
            "profiles": self._config.eval_profiles or "validation",
            "profiles_hash": digest(*(profile.model_dump_json() for profile in self._profiles)),
            "n": len(self._profiles),
            "seed": EVALUATION_SEED,
            "preset": self._config.rules.name,
            "users": {user_type: user.identity for user_type, user in self._users.items()},
        }

    def run(self, policy: LocalPolicy, on_progress: Callable[[str], None]) -> dict[str, float]:
        """Evaluate a policy as it is now, without copying its model. Returns metrics under `eval/USER_TYPE/`."""
        metrics: dict[str, float] = {}
        for user_type, user in self._users.items():
            transcripts = run_benchmark(
                self._profiles,
                policy,
                user,
                self._config.rules,
                EVALUATION_SEED,
                on_progress=lambda done, total, name=user_type: on_progress(f"{name} {done}/{total}"),  # type: ignore[misc]
            )
            summary = summarise(transcripts)
            low, high = summary.ci95
            values = {"score": summary.score, "low": low, "high": high, "success": summary.success}
            values["failure"] = summary.failure
            metrics |= {f"{PREFIX}{user_type}/{name}": value for name, value in values.items()}
        return metrics


class Best:
    """The best and the last evaluation of a run so far, by the mean score with the user type that it trains with."""

    def __init__(self, user_type: UserType) -> None:
        self._user_type = user_type
        self.step = self.last_step = 0
        """0 before the first evaluation."""
        self.score = self.last = Score(0.0, 0.0, 0.0)

    def observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Record the metrics of a step. Returns whether they hold the best evaluation so far; of equals, the first."""
        score = score_of(metrics, self._user_type)
        if score is None:
            return False
        self.last_step, self.last = step, score
        if self.step and score.mean <= self.score.mean:
            return False
        self.step, self.score = step, score
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {"step": self.step, "score": self.score, "last_step": self.last_step, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.step, self.score = state["step"], Score(*state["score"])
        self.last_step, self.last = state["last_step"], Score(*state["last"])


def score_of(metrics: Mapping[str, float], user_type: UserType) -> Score | None:
    """The score with a user type in the metrics of a step; None if the step was not evaluated."""
    if f"{PREFIX}{user_type}/score" not in metrics:
        return None
    return Score(*(metrics[f"{PREFIX}{user_type}/{name}"] for name in ("score", "low", "high")))
