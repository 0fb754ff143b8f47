"""How well the embedded judge agrees with the recorded judge, turn by turn and model by model.

Shape suffixes: N replies, D dialogues, M models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlver.core.correlation import Array, pearson, spearman
from rlver.core.emotion import band
from rlver.core.profile import Intention
from rlver.text.ngram import quantile
from rlver.users.calibration.recorded import JudgedReply, RecordedDialogue
from rlver.users.embedded.judge import STEPS, points_by_cue, step
from rlver.users.embedded.weights import Weights

RESAMPLES = 500
"""Number of bootstrap samples."""
_EMOTION_CUES = ("mood", "momentum", "memory")
"""Cues that depend on the emotion and the last changes."""


class Prediction(NamedTuple):
    """The embedded judge's points for a reply."""

    total: float
    """Sum of all points, clamped to [-10, 10] but not rounded to a step."""
    reply_alone: float
    """The same without the points for the current emotion and the last changes."""
    change: int
    """The step."""


def predict(replies: Sequence[JudgedReply], weights: Weights) -> list[Prediction]:
    """The embedded judge's judgement of each reply, given the recorded emotion and last changes."""
    predictions = []
    for reply in replies:
        points = points_by_cue(reply.observation, reply.intention, weights)
        total = sum(points.values())
        reply_alone = total - sum(points.get(cue, 0.0) for cue in _EMOTION_CUES)
        predictions.append(Prediction(_clamped(total), _clamped(reply_alone), step(total, weights.big_step)))
    return predictions


def final_scores(
    replies: Sequence[JudgedReply], dialogues: Sequence[RecordedDialogue], totals: Sequence[float]
) -> list[float]:
    """Predicted final score of every dialogue: its start plus all predicted changes, clamped to [0, 100].

    Args:
        totals: predicted change of each reply.
    """
    finals = [dialogue.start for dialogue in dialogues]
    for reply, total in zip(replies, totals, strict=True):
        finals[reply.dialogue] += total
    return [max(0.0, min(100.0, final)) for final in finals]


def _clamped(points: float) -> float:
    return max(-10.0, min(10.0, points))


def sign_accuracy(predicted: Array, recorded: Array) -> float:
    """Share of replies for which the direction of the change is predicted."""
    return float(((predicted > 0) == (recorded > 0)).mean())


def turn_measures(predicted_N: Array, recorded_N: Array, profiles: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Pearson, Spearman and sign accuracy, each with a 95 % bootstrap interval clustered by profile.

    Args:
        profiles: profile of each reply.
        seed: of the bootstrap.
    """
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
    report: dict[str, Any] = {name: measure(predicted_N, recorded_N) for name, measure in measures.items()}
    report["ci95"] = {name: [quantile(values, 0.025), quantile(values, 0.975)] for name, values in samples.items()}
    return report


def model_measures(finals_D: Sequence[float], dialogues: Sequence[RecordedDialogue], seed: int = 0) -> dict[str, Any]:
    """Mean final scores by model, predicted and recorded: Spearman over models, and mean absolute error.

    Args:
        finals_D: predicted final score of each dialogue.
        seed: of the bootstrap, which is clustered by profile.
    """
    by_model: dict[str, list[int]] = defaultdict(list)
    for i, dialogue in enumerate(dialogues):
        by_model[dialogue.model].append(i)
    recorded_D = np.array([dialogue.final for dialogue in dialogues])
    predicted_D = np.array(finals_D)
    profiles = sorted({dialogue.profile.id for dialogue in dialogues})
    number_of = {profile: k for k, profile in enumerate(profiles)}
    profile_D = np.array([number_of[dialogue.profile.id] for dialogue in dialogues])
    models = list(by_model.values())

    def measure(weight_D: Array) -> tuple[float, float]:
        recorded_M = np.array([np.average(recorded_D[of], weights=weight_D[of]) for of in models])
        predicted_M = np.array([np.average(predicted_D[of], weights=weight_D[of]) for of in models])
        return spearman(predicted_M, recorded_M), float(np.abs(predicted_M - recorded_M).mean())

    rank, error = measure(np.ones(len(dialogues)))
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(RESAMPLES):
        draws = np.bincount(rng.integers(len(profiles), size=len(profiles)), minlength=len(profiles))
        weight_D = draws[profile_D].astype(float)
        if all(weight_D[of].sum() for of in models):
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
                "n": len(of),
                "recorded": official_score([dialogues[i].final for i in of]),
                "judged": official_score([finals_D[i] for i in of]),
            }
            for model, of in by_model.items()
        },
    }


def official_score(finals: Sequence[float]) -> dict[str, float]:
    """Score, success and failure of a model as on the official leaderboard.

    They are the mean of its final scores to four decimals, the number of dialogues that ended at 100, and the number of
    those that ended below 10.
    """
    return {
        "score": round(sum(finals) / len(finals), 4),
        "success": sum(final >= 100 for final in finals),
        "failure": sum(final < 10 for final in finals),
    }


def score(
    replies: Sequence[JudgedReply], dialogues: Sequence[RecordedDialogue], weights: Weights, seed: int = 0
) -> dict[str, Any]:
    """All measures that `rlver judge score` prints.

    Args:
        seed: of the bootstrap.
    """
    predictions = predict(replies, weights)
    total_N = np.array([prediction.total for prediction in predictions])
    reply_alone_N = np.array([prediction.reply_alone for prediction in predictions])
    step_N = np.array([prediction.change for prediction in predictions])
    change_N = np.array([reply.change for reply in replies])
    profiles = [reply.profile for reply in replies]

    def measure_part(chosen: list[bool]) -> dict[str, float]:
        mask = np.array(chosen)
        return {
            "n": int(mask.sum()),
            "pearson": pearson(total_N[mask], change_N[mask]),
            "sign_accuracy": sign_accuracy(total_N[mask], change_N[mask]),
        }

    return {
        "n": len(replies),
        "dialogues": len(dialogues),
        "weights": weights.mark,
        "turn": turn_measures(total_N, change_N, profiles, seed),
        "turn_without_score": turn_measures(reply_alone_N, change_N, profiles, seed),
        "by_intention": {
            intention.value: measure_part([reply.intention is intention for reply in replies])
            for intention in Intention
            if any(reply.intention is intention for reply in replies)
        },
        "by_band": {
            letter: measure_part([band(reply.emotion) == letter for reply in replies])
            for letter in ("A", "B", "C", "F")
            if any(band(reply.emotion) == letter for reply in replies)
        },
        "calibration": {
            str(s): {
                "predicted": float((step_N == s).mean()),
                "recorded": float((nearest_step(change_N) == s).mean()),
                "mean_change_when_predicted": float(change_N[step_N == s].mean()) if (step_N == s).any() else None,
            }
            for s in STEPS
        },
        "models": model_measures(final_scores(replies, dialogues, total_N.tolist()), dialogues, seed),
    }


def nearest_step(change_N: Array) -> Array:
    """The nearest of the four steps for each recorded change. No change counts as -5, because it is not a rise."""
    steps: Array = np.select([change_N <= -7.5, change_N <= 0, change_N < 7.5], [-10, -5, 5], 10)
    return steps
