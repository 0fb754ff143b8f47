"""Fit the calibrated part of the judgement: additive step functions by penalised least squares.

Every cue gets one step function, each act one more for every hidden intention; neighbouring steps are drawn to each
other and all of them to zero, so that what is rarely seen stays near what it is next to. There is one solution, in
closed form: the same files give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlver.core.errors import RlverError
from rlver.core.profile import Intention
from rlver.users.calibration.recorded import Judged
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
"""Where the steps of each cue begin: by eye, where readers would draw the line, not by search."""
BY_INTENTION = (*NEED_ACTS, *OTHER_ACTS, "momentum")
"""Cues whose effect depends on what the user came for."""

# Strengths of the penalties, in replies: on the height of a step, on its height for one intention, on the difference
# of neighbouring steps, on a base by intention, on a model's own level.
_HEIGHT, _HEIGHT_BY_INTENTION, _DIFFERENCE, _BASE, _MODEL = 2.0, 18.0, 100.0, 5.0, 300.0
_DECIDED = 5.0
"""Replies that hand-set points move further than this tell nothing about the other cues."""
METHOD = "additive steps, penalised least squares, one level per model (random effect), not kept"


Array = np.ndarray[Any, Any]


class _Block(NamedTuple):
    cue: str
    intention: Intention | None
    size: int


class Design:
    """The equations of a fit, built once for all replies, solved for any subset of them.

    Shape suffixes: N replies, P parameters, M models.
    """

    def __init__(self, rows: Sequence[Judged]) -> None:
        self._models = sorted({row.model for row in rows})
        self._blocks: list[_Block] = []
        columns, penalties = [], []
        intention_N = np.array([row.intention.value for row in rows])
        usual_N = np.array([row.seen.usual for row in rows])
        for cue, edges in EDGES.items():
            state = cue in STATE
            values_N = [(row.seen.state if state else row.seen.reply)[cue] for row in rows]
            steps_NK = np.eye(len(edges) + 1)[np.searchsorted(edges, values_N, side="right")]
            if not state:
                steps_NK = steps_NK * usual_N[:, None]
            difference_KK = np.diff(np.eye(len(edges) + 1), axis=0)
            smooth_KK = _DIFFERENCE * difference_KK.T @ difference_KK if cue != "persona" else 0.0
            for intention in (None, *(Intention if cue in BY_INTENTION else ())):
                mine_N1 = 1.0 if intention is None else (intention_N == intention.value)[:, None]
                height = _HEIGHT if intention is None else _HEIGHT_BY_INTENTION
                columns.append(steps_NK * mine_N1)
                penalties.append(height * np.eye(len(edges) + 1) + (1 if intention is None else 2) * smooth_KK)
                self._blocks.append(_Block(cue, intention, len(edges) + 1))
        columns.append(np.stack([intention_N == intention.value for intention in Intention], axis=1).astype(float))
        penalties.append(_BASE * np.eye(len(Intention)))
        columns.append(np.stack([np.array([row.model == model for row in rows]) for model in self._models], axis=1))
        penalties.append(_MODEL * np.eye(len(self._models)))
        self._X_NP = np.hstack(columns).astype(float)
        self._penalty_PP = _block_diagonal(penalties)
        self._fixed_N = np.array([sum(row.seen.fixed.values()) for row in rows])
        self._change_N = np.array([row.change for row in rows])

    def solve(self, among_N: Array) -> Array:
        """The parameters that fit the chosen replies (a boolean mask) best, the mean last."""
        among_N = among_N & (np.abs(self._fixed_N) < _DECIDED)
        X_NP, target_N = self._X_NP[among_N], (self._change_N - self._fixed_N)[among_N]
        mean = target_N.mean()
        solved_P = np.linalg.solve(X_NP.T @ X_NP + self._penalty_PP, X_NP.T @ (target_N - mean))
        return np.append(solved_P, mean)

    def predict(self, solved: Array) -> Array:
        """The points that each reply gets, hand-set ones included, rounding left out. The models' levels are no
        part of it: nobody knows the level of the next model."""
        kept = len(solved) - 1 - len(self._models)
        predicted_N: Array = self._X_NP[:, :kept] @ solved[:kept] + solved[-1] + self._fixed_N
        return np.clip(predicted_N, -10, 10)

    def judge(self, solved: Array, trained_N: Array, provenance: Provenance | None = None) -> Weights:
        """The parameters as weights; `big_step` keeps steps of 10 as frequent as they are among the trained replies."""
        shapes: dict[str, dict[str, Any]] = {}
        plain = dict.fromkeys(Intention, 0.0)
        at = 0
        for cue, intention, size in self._blocks:
            # What a reply lacks is told once, as `plain`, and not by every act that it does not do.
            first = 0.0 if cue in STATE else float(solved[at])
            points = tuple(round(float(value) - first, 3) for value in solved[at : at + size])
            at += size
            for who in Intention if intention is None else (intention,):
                plain[who] += first
            shape = shapes.setdefault(cue, {"edges": EDGES[cue], "points": points, "by_intention": {}})
            if intention is not None:
                shape["by_intention"][intention] = points
        return Weights(
            provenance=provenance or Provenance(),
            base={i: round(float(solved[at + k] + solved[-1]), 3) for k, i in enumerate(Intention)},
            plain={who: round(value, 3) for who, value in plain.items()},
            shapes={cue: Shape(**shape) for cue, shape in shapes.items()},
            big_step=big_step(self.predict(solved)[trained_N], self._change_N[trained_N]),
        )


def big_step(predicted_N: Array, change_N: Array) -> tuple[float, float]:
    """Thresholds beyond which predictions lie as often as recorded changes are about 10."""
    low = float(np.quantile(predicted_N, (change_N <= -7.5).mean()))
    high = float(np.quantile(predicted_N, 1 - (change_N >= 7.5).mean()))
    return round(min(low, -0.5), 3), round(max(high, 0.5), 3)


def fit(rows: Sequence[Judged], language: str) -> Weights:
    """Fit weights to judged replies.

    Raises:
        RlverError: there are fewer than 200 replies, too few for any shape.
    """
    if len(rows) < 200:
        raise RlverError(f"{len(rows)} judged replies are too few to fit to; 200 are the least, thousands are good.")
    design = Design(rows)
    provenance = Provenance(
        language=language,
        files=tuple(sorted({row.model for row in rows})),
        dialogues=len({row.dialogue for row in rows}),
        replies=len(rows),
        method=METHOD,
        rlver=version(),
    )
    everything = np.ones(len(rows), dtype=bool)
    return design.judge(design.solve(everything), everything, provenance)


def _block_diagonal(blocks: Sequence[Array]) -> Array:
    size = sum(len(block) for block in blocks)
    whole = np.zeros((size, size))
    at = 0
    for block in blocks:
        whole[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return whole
