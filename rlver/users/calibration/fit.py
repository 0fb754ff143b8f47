"""Fits the calibrated part of the judgement: additive step functions, by penalised least squares.

Every cue gets a step function, and every act another one for each hidden intention. The penalty pulls neighbouring
steps together and all steps to zero, so that a rare value stays near its neighbours. The solution is unique and in
closed form: the same files give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Intention
from rlver.users.calibration.recorded import JudgedReply
from rlver.users.embedded.acts import NEED_ACTS, OTHER_ACTS
from rlver.users.embedded.judge import STATE
from rlver.users.embedded.weights import Provenance, Shape, Weights
from rlver.version import version

_SHARES = (0.001, 0.1, 0.2, 0.35)
EDGES: dict[str, tuple[float, ...]] = {
    "mood": (20, 30, 40, 50, 60, 70, 80, 90),
    "momentum": (-7, -0.5, 0.5, 7),
    "memory": (-7, -0.5, 0.5, 7),
    "turn": (1, 2, 3, 5, 7),
    "persona": (1, 2),
    **dict.fromkeys((*NEED_ACTS, *OTHER_ACTS), _SHARES),
    "generic": (1, 2, 3, 5),
    "warm": (1, 2, 3, 5),
    "repeated": (0.01, 0.03, 0.08, 0.15, 0.25, 0.4, 0.8),
    "alike": (0.05, 0.1, 0.15, 0.2, 0.3),
    "same_start": (1, 2, 4),
    "echo": (1, 2, 4, 7, 11),
    "maybe": (1, 2, 3, 5),
    "tips": (1, 2, 4),
    "sounds_like": (1,),
    "relative_length": (5, 7, 9, 13, 20),
    "emojis": (1, 3),
}
"""Where the steps of each cue begin. They were chosen by eye, where a reader would draw the line, not by search."""
BY_INTENTION = (*NEED_ACTS, *OTHER_ACTS, "momentum")
"""Cues whose effect depends on the hidden intention."""

# Strengths of the penalties, in replies: on the height of a step, on its height for one intention, on the difference
# between neighbouring steps, on the base of an intention, and on the level of a model.
_HEIGHT, _HEIGHT_BY_INTENTION, _DIFFERENCE, _BASE, _MODEL = 2.0, 18.0, 100.0, 5.0, 300.0
_DECIDED = 5.0
"""Replies with more hand-set points than this, up or down, are left out: they show nothing about the other cues."""
METHOD = "additive steps, penalised least squares, one level per model (random effect), not kept"


Array = np.ndarray[Any, Any]


class _Block(NamedTuple):
    """The parameters of one step function."""

    cue: str
    intention: Intention | None
    """None for the function that holds for all intentions."""
    size: int
    """Number of steps."""


class Design:
    """The equations of a fit, built once for all replies and solved for any subset of them.

    Shape suffixes: N replies, P parameters, K steps of a cue.
    """

    def __init__(self, replies: Sequence[JudgedReply]) -> None:
        self._models = sorted({reply.model for reply in replies})
        self._blocks: list[_Block] = []
        columns, penalties = [], []
        intention_N = np.array([reply.intention.value for reply in replies])
        observations = [reply.observation for reply in replies]
        usual_N = np.array([observation.usual for observation in observations])
        for cue, edges in EDGES.items():
            is_state = cue in STATE
            values_N = [(observation.state if is_state else observation.reply)[cue] for observation in observations]
            steps_NK = np.eye(len(edges) + 1)[np.searchsorted(edges, values_N, side="right")]
            if not is_state:
                steps_NK = steps_NK * usual_N[:, None]
            difference_KK = np.diff(np.eye(len(edges) + 1), axis=0)
            smooth_KK = _DIFFERENCE * difference_KK.T @ difference_KK if cue != "persona" else 0.0
            for intention in (None, *(Intention if cue in BY_INTENTION else ())):
                applies_N1 = 1.0 if intention is None else (intention_N == intention.value)[:, None]
                height = _HEIGHT if intention is None else _HEIGHT_BY_INTENTION
                columns.append(steps_NK * applies_N1)
                penalties.append(height * np.eye(len(edges) + 1) + (1 if intention is None else 2) * smooth_KK)
                self._blocks.append(_Block(cue, intention, len(edges) + 1))
        columns.append(np.stack([intention_N == intention.value for intention in Intention], axis=1).astype(float))
        penalties.append(_BASE * np.eye(len(Intention)))
        model_N = np.array([reply.model for reply in replies])
        columns.append(np.stack([model_N == model for model in self._models], axis=1))
        penalties.append(_MODEL * np.eye(len(self._models)))
        self._X_NP = np.hstack(columns).astype(float)
        self._penalty_PP = _block_diagonal(penalties)
        self._fixed_N = np.array([sum(observation.fixed.values()) for observation in observations])
        self._change_N = np.array([reply.change for reply in replies])

    def solve(self, chosen_N: Array) -> Array:
        """Fit the parameters to some of the replies.

        Args:
            chosen_N: boolean mask of these replies.

        Returns:
            (P + 1,) the parameters, and the mean as the last number.
        """
        chosen_N = chosen_N & (np.abs(self._fixed_N) < _DECIDED)
        X_NP, target_N = self._X_NP[chosen_N], (self._change_N - self._fixed_N)[chosen_N]
        mean = target_N.mean()
        solution_P = np.linalg.solve(X_NP.T @ X_NP + self._penalty_PP, X_NP.T @ (target_N - mean))
        return np.append(solution_P, mean)

    def predict(self, solution: Array) -> Array:
        """Points of each reply (N,), including hand-set ones, without rounding.

        The levels of the models are left out, because the level of a new model is unknown.
        """
        used = len(solution) - 1 - len(self._models)
        predicted_N: Array = self._X_NP[:, :used] @ solution[:used] + solution[-1] + self._fixed_N
        return np.clip(predicted_N, -10, 10)

    def weights(self, solution: Array, trained_N: Array, provenance: Provenance | None = None) -> Weights:
        """The parameters as weights.

        Args:
            trained_N: boolean mask of the replies among which steps of 10 are to be as frequent as recorded.
        """
        shapes: dict[str, dict[str, Any]] = {}
        plain = dict.fromkeys(Intention, 0.0)
        start = 0
        for cue, intention, size in self._blocks:
            # The points for lacking a cue are summed in `plain`, so that a reply does not list all acts it lacks.
            first = 0.0 if cue in STATE else float(solution[start])
            points = tuple(round(float(value) - first, 3) for value in solution[start : start + size])
            start += size
            for affected in Intention if intention is None else (intention,):
                plain[affected] += first
            shape = shapes.setdefault(cue, {"edges": EDGES[cue], "points": points, "by_intention": {}})
            if intention is not None:
                shape["by_intention"][intention] = points
        return Weights(
            provenance=provenance or Provenance(),
            base={i: round(float(solution[start + k] + solution[-1]), 3) for k, i in enumerate(Intention)},
            plain={intention: round(value, 3) for intention, value in plain.items()},
            shapes={cue: Shape(**shape) for cue, shape in shapes.items()},
            big_step=big_step(self.predict(solution)[trained_N], self._change_N[trained_N]),
        )


def big_step(predicted_N: Array, change_N: Array) -> tuple[float, float]:
    """Thresholds that as many predictions exceed as recorded changes are about 10, downwards and upwards."""
    low = float(np.quantile(predicted_N, (change_N <= -7.5).mean()))
    high = float(np.quantile(predicted_N, 1 - (change_N >= 7.5).mean()))
    return round(min(low, -0.5), 3), round(max(high, 0.5), 3)


def fit(replies: Sequence[JudgedReply], language: str) -> Weights:
    """Fit weights to judged replies.

    Raises:
        RlverError: there are fewer than 200 replies, which is too few for any shape.
    """
    if len(replies) < 200:
        raise RlverError(f"{len(replies)} judged replies are too few to fit; give at least 200, or better thousands.")
    design = Design(replies)
    provenance = Provenance(
        language=language,
        files=tuple(sorted({reply.model for reply in replies})),
        dialogues=len({reply.dialogue for reply in replies}),
        replies=len(replies),
        method=METHOD,
        rlver=version(),
    )
    all_N = np.ones(len(replies), dtype=bool)
    return design.weights(design.solve(all_N), all_N, provenance)


def _block_diagonal(blocks: Sequence[Array]) -> Array:
    size = sum(len(block) for block in blocks)
    matrix = np.zeros((size, size))
    start = 0
    for block in blocks:
        matrix[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return matrix
