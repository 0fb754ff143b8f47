"""How near the agent's judgement comes to the recorded one, turn by turn and model by model.

Shape suffixes: N replies, D dialogues, M models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlver.core.emotion import band
from rlver.core.profile import Intention
from rlver.text.ngram import quantile
from rlver.users.calibration.recorded import Judged, Recorded
from rlver.users.embedded.judge import STEPS, add_up, step
from rlver.users.embedded.weights import Weights

RESAMPLES = 500
_OF_THE_SCORE = ("mood", "momentum", "memory")
Array = np.ndarray[Any, Any]


class Prediction(NamedTuple):
    """What the agent makes of a judged reply, in points."""

    total: float
    """Sum of all points, at most 10 in either direction, before it is rounded to a step."""
    without_state: float
    """The same without what the present score and the last changes add."""
    change: int
    """The step."""


def predict(rows: Sequence[Judged], weights: Weights) -> list[Prediction]:
    """The agent's judgement of each reply, the recorded score and last change given."""
    found = []
    for row in rows:
        points = add_up(row.seen, row.intention, weights)
        total = sum(points.values())
        bare = total - sum(points.get(cue, 0.0) for cue in _OF_THE_SCORE)
        found.append(Prediction(_bounded(total), _bounded(bare), step(total, weights.big_step)))
    return found


def final_scores(rows: Sequence[Judged], dialogues: Sequence[Recorded], totals: Sequence[float]) -> list[float]:
    """Final score of every dialogue by the agent: its start and all the changes that the agent predicts, each from
    the recorded score before the reply, between 0 and 100."""
    finals = [dialogue.start for dialogue in dialogues]
    for row, total in zip(rows, totals, strict=True):
        finals[row.dialogue] += total
    return [max(0.0, min(100.0, final)) for final in finals]


def _bounded(points: float) -> float:
    return max(-10.0, min(10.0, points))


def pearson(a: Array, b: Array) -> float:
    """Pearson correlation; 0 where one side does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: Array, b: Array) -> float:
    """Spearman correlation, ties sharing their mean rank; 0 where one side does not vary."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks: Array = mean_rank[inverse]
    return ranks


def sign_accuracy(predicted: Array, recorded: Array) -> float:
    """Share of replies whose rise or fall is predicted."""
    return float(((predicted > 0) == (recorded > 0)).mean())


def turn_measures(predicted_N: Array, recorded_N: Array, profiles: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Pearson, Spearman and sign accuracy, each with a 95 % bootstrap interval over profiles."""
    measures: dict[str, Callable[[Array, Array], float]] = {
        "pearson": pearson,
        "spearman": spearman,
        "sign_accuracy": sign_accuracy,
    }
    groups: dict[str, list[int]] = defaultdict(list)
    for i, profile in enumerate(profiles):
        groups[profile].append(i)
    clusters = [np.array(group) for group in groups.values()]
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(RESAMPLES):
        picked = np.concatenate([clusters[k] for k in rng.integers(len(clusters), size=len(clusters))])
        for name, measure in measures.items():
            samples[name].append(measure(predicted_N[picked], recorded_N[picked]))
    found: dict[str, Any] = {name: measure(predicted_N, recorded_N) for name, measure in measures.items()}
    found["ci95"] = {name: [quantile(values, 0.025), quantile(values, 0.975)] for name, values in samples.items()}
    return found


def model_measures(finals_D: Sequence[float], dialogues: Sequence[Recorded], seed: int = 0) -> dict[str, Any]:
    """Final scores by model, the agent's beside the recorded ones: Spearman over models and mean absolute error."""
    by_model: dict[str, list[int]] = defaultdict(list)
    for i, dialogue in enumerate(dialogues):
        by_model[dialogue.model].append(i)
    recorded_D = np.array([dialogue.final for dialogue in dialogues])
    mine_D = np.array(finals_D)
    profiles = sorted({dialogue.profile.id for dialogue in dialogues})
    place = {profile: k for k, profile in enumerate(profiles)}
    group_D = np.array([place[dialogue.profile.id] for dialogue in dialogues])
    rows = list(by_model.values())

    def measure(weight_D: Array) -> tuple[float, float]:
        real = np.array([np.average(recorded_D[r], weights=weight_D[r]) for r in rows])
        mine = np.array([np.average(mine_D[r], weights=weight_D[r]) for r in rows])
        return spearman(mine, real), float(np.abs(mine - real).mean())

    rank, error = measure(np.ones(len(dialogues)))
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(len(profiles), size=len(profiles)), minlength=len(profiles))
        weight_D = times[group_D].astype(float)
        if all(weight_D[r].sum() for r in rows):
            samples.append(measure(weight_D))
    ci = {
        name: [quantile([s[k] for s in samples], 0.025), quantile([s[k] for s in samples], 0.975)] if samples else []
        for k, name in enumerate(("spearman", "score_mae"))
    }
    return {
        "spearman": rank,
        "score_mae": error,
        "ci95": ci,
        "by_model": {
            model: {
                "n": len(r),
                "recorded": official_score([dialogues[i].final for i in r]),
                "judged": official_score([finals_D[i] for i in r]),
            }
            for model, r in by_model.items()
        },
    }


def official_score(finals: Sequence[float]) -> dict[str, float]:
    """Score, success and failure of a model as the leaderboard has them: the mean of its final scores to four
    decimals, how many dialogues ended at 100 and how many below 10."""
    return {
        "score": round(sum(finals) / len(finals), 4),
        "success": sum(final >= 100 for final in finals),
        "failure": sum(final < 10 for final in finals),
    }


def score(rows: Sequence[Judged], dialogues: Sequence[Recorded], weights: Weights, seed: int = 0) -> dict[str, Any]:
    """Everything that `rlver judge score` prints."""
    found = predict(rows, weights)
    total_N = np.array([p.total for p in found])
    bare_N = np.array([p.without_state for p in found])
    step_N = np.array([p.change for p in found])
    change_N = np.array([row.change for row in rows])
    profiles = [row.profile for row in rows]

    def part(chosen: list[bool]) -> dict[str, float]:
        mask = np.array(chosen)
        return {
            "n": int(mask.sum()),
            "pearson": pearson(total_N[mask], change_N[mask]),
            "sign_accuracy": sign_accuracy(total_N[mask], change_N[mask]),
        }

    return {
        "n": len(rows),
        "dialogues": len(dialogues),
        "weights": weights.mark,
        "turn": turn_measures(total_N, change_N, profiles, seed),
        "turn_without_score": turn_measures(bare_N, change_N, profiles, seed),
        "by_intention": {
            i.value: part([row.intention is i for row in rows])
            for i in Intention
            if any(row.intention is i for row in rows)
        },
        "by_band": {
            b: part([band(row.score) == b for row in rows])
            for b in ("A", "B", "C", "F")
            if any(band(row.score) == b for row in rows)
        },
        "calibration": {
            str(s): {
                "predicted": float((step_N == s).mean()),
                "recorded": float((nearest_step(change_N) == s).mean()),
                "mean_change_when_predicted": float(change_N[step_N == s].mean()) if (step_N == s).any() else None,
            }
            for s in STEPS
        },
        "models": model_measures(final_scores(rows, dialogues, total_N.tolist()), dialogues, seed),
    }


def nearest_step(change_N: Array) -> Array:
    """Recorded changes as the nearest of the four steps; no change counts as -5, for it is no rise."""
    steps: Array = np.select([change_N <= -7.5, change_N <= 0, change_N < 7.5], [-10, -5, 5], 10)
    return steps
