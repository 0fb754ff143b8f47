"""The calibrated part of the judgement: a step function per cue, fitted to recorded dialogues and kept in a small file.

The model is additive, like an explainable boosting machine (Lou et al., "Intelligible models", 2012): every cue
contributes one number, and the numbers add up to the prediction. Evaluating it needs no library.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from functools import cache, cached_property
from math import inf
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from rlver.core.data import digest, read_text
from rlver.core.errors import RlverError, first_problem
from rlver.core.files import read_file
from rlver.core.profile import Frozen, Intention

_Steps = tuple[tuple[float, ...], tuple[float, ...]]
"""(edges, points)"""


class Shape(Frozen):
    """A step function from the value of a cue to points: `points[k]` for `edges[k - 1]` <= value < `edges[k]`."""

    edges: tuple[float, ...]
    points: tuple[float, ...]
    by_intention: dict[Intention, tuple[float, ...]] = Field(default={})
    """Additional points for users with this hidden intention."""

    @model_validator(mode="after")
    def _fitting(self) -> Shape:
        if any(len(points) != len(self.edges) + 1 for points in (self.points, *self.by_intention.values())):
            raise ValueError("a shape must have one step more than it has edges")
        if list(self.edges) != sorted(self.edges):
            raise ValueError("edges must ascend")
        return self

    def at(self, value: float, intention: Intention) -> float:
        """The contribution of a value, in points of emotion."""
        step = bisect_right(self.edges, value)
        extra = self.by_intention.get(intention)
        return self.points[step] + (extra[step] if extra else 0.0)


class Provenance(Frozen):
    """The data and method of a fit."""

    language: str = ""
    """Language of the recorded dialogues."""
    files: tuple[str, ...] = ()
    """Names of the transcript files, one per model."""
    dialogues: int = 0
    replies: int = 0
    method: str = ""
    rlver: str = ""


class Weights(Frozen):
    """A fitted judgement."""

    version: int = 1
    provenance: Provenance
    base: dict[Intention, float]
    """Points of every reply, by hidden intention."""
    plain: dict[Intention, float] = Field(default={})
    """Points of a reply of usual length whose cues are all on their first steps, by hidden intention."""
    shapes: dict[str, Shape]
    big_step: tuple[float, float] = Field(default=(-7.5, 7.5))
    """Totals from which a change is -10 instead of -5, and 10 instead of 5. They make steps of 10 as frequent as in the
    recorded dialogues."""

    def contributions(self, values: Mapping[str, float], intention: Intention) -> dict[str, float]:
        """Points by cue, for those cues of `values` that have a shape."""
        steps = self._steps[intention]
        contributions = {}
        for cue, value in values.items():
            if step := steps.get(cue):
                edges, points = step
                contributions[cue] = points[bisect_right(edges, value)]
        return contributions

    @cached_property
    def _steps(self) -> dict[Intention, dict[str, _Steps]]:
        """Step functions by intention and cue, with the points of the intention added in."""
        return {
            intention: {
                cue: (shape.edges, tuple([shape.at(value, intention) for value in (-inf, *shape.edges)]))
                for cue, shape in self.shapes.items()
            }
            for intention in Intention
        }

    @property
    def mark(self) -> str:
        """Eight hexadecimal digits that identify the numbers."""
        return digest(self.model_dump_json(exclude={"provenance"}))


@cache
def default_weights() -> Weights:
    """The weights that ship with the package."""
    return Weights.model_validate_json(read_text("rlver.users.embedded", "data/weights.json"))


def read_weights(path: Path) -> Weights:
    """Read weights from a file.

    Raises:
        RlverError: the file is missing, or holds no weights.
    """
    if not path.exists():
        raise RlverError(f"{path}: there is no such file; `rlver judge fit --out {path}` makes one.")
    try:
        return Weights.model_validate_json(read_file(path))
    except ValidationError as error:
        raise RlverError(f"{path}: these are not the weights of a judge ({first_problem(error, 'file')}).") from None
