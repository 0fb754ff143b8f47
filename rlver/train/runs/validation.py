"""Evaluation while a run goes on: how does the policy do with users that it does not train with?

The users are those of the *validation* split: their stories, and their hints, belong neither to training nor to the
benchmark. What is chosen by looking at an evaluation (the best policy of a run, when to stop, settings) has been
fitted to its users, so it says too much of itself on them; the benchmark's users are kept for the one measurement at
the end. Profiles and seeds are fixed: all evaluations of all runs ask the same people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from rlver.core.data import digest
from rlver.core.emotion import get_preset
from rlver.core.interfaces import UserType
from rlver.evaluation.benchmark import run_benchmark
from rlver.evaluation.statistics import summarise
from rlver.policies.local import LocalPolicy
from rlver.train.config import TrainConfig
from rlver.train.runs.profiles import EVALUATION_SEED, evaluation_profiles
from rlver.users.embedded.user import EmbeddedUser

PREFIX = "eval/"


class Score(NamedTuple):
    """Mean final score of an evaluation, 0-100, with its 95 % interval clustered by profile."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


class Evaluator:
    """Lets a policy talk with held-out users: vanilla ones, and those of the type that it trains with."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._profiles = evaluation_profiles(config)
        users: tuple[UserType, ...] = ("vanilla", config.user) if config.curriculum == "none" else get_args(UserType)
        self._agents = {user: EmbeddedUser(config.language, user, "validation") for user in users}

    @property
    def facts(self) -> dict[str, Any]:
        """What the scores are scores of."""
        return {
            "profiles": self._config.eval_profiles or "validation",
            "profiles_hash": digest(*(profile.model_dump_json() for profile in self._profiles)),
            "n": len(self._profiles),
            "seed": EVALUATION_SEED,
            "preset": self._config.preset,
            "users": {user: agent.identity for user, agent in self._agents.items()},
        }

    def run(self, policy: LocalPolicy, on_progress: Callable[[str], None]) -> dict[str, float]:
        """Evaluate a policy as it is now; its model is used in place. Returns metrics under `eval/USER/`."""
        metrics: dict[str, float] = {}
        for user, agent in self._agents.items():
            transcripts = run_benchmark(
                self._profiles,
                policy,
                agent,
                get_preset(self._config.preset),
                EVALUATION_SEED,
                on_progress=lambda done, total, user=user: on_progress(f"{user} {done}/{total}"),  # type: ignore[misc]
            )
            found = summarise(transcripts)
            low, high = found.ci95
            values = {"score": found.score, "low": low, "high": high, "success": found.success}
            values["failure"] = found.failure
            metrics |= {f"{PREFIX}{user}/{name}": value for name, value in values.items()}
        return metrics


class Best:
    """The best and the last evaluation of a run so far, by the mean score with the type of user that it trains with."""

    def __init__(self, user: UserType) -> None:
        self._user = user
        self.step = self.last_step = 0
        """0 before the first evaluation."""
        self.score = self.last = Score(0.0, 0.0, 0.0)

    def take(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Count the metrics of a step; says whether they hold the best evaluation so far (of equals, the first is)."""
        score = score_of(metrics, self._user)
        if score is None:
            return False
        self.last_step, self.last = step, score
        if self.step and score.mean <= self.score.mean:
            return False
        self.step, self.score = step, score
        return True

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"step": self.step, "score": self.score, "last_step": self.last_step, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.score = state["step"], Score(*state["score"])
        self.last_step, self.last = state["last_step"], Score(*state["last"])


def score_of(metrics: Mapping[str, float], user: UserType) -> Score | None:
    """The score with a type of user among the metrics of a step; None if they hold no evaluation."""
    if f"{PREFIX}{user}/score" not in metrics:
        return None
    return Score(*(metrics[f"{PREFIX}{user}/{name}"] for name in ("score", "low", "high")))
