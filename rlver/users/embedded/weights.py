"""The calibrated part of the judgement: one step function a cue, fitted to recorded dialogues, a small file of numbers.

The prediction is additive, as an explainable boosting machine's is (Lou et al., "Intelligible models", 2012): the
contributions of the cues, one number each, add up to it exactly. Evaluating it needs nothing but this file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from functools import cache, cached_property
from math import inf
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from rlver.core.data import digest, read_text
from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.core.profile import Frozen, Intention

_Steps = tuple[tuple[float, ...], tuple[float, ...]]


class Shape(Frozen):
    """Points by the value of one cue: `points[k]` from `edges[k - 1]` (included) to `edges[k]` (left out)."""

    edges: tuple[float, ...]
    points: tuple[float, ...]
    by_intention: dict[Intention, tuple[float, ...]] = Field(default={})
    """Points on top for users with this hidden intention."""

    @model_validator(mode="after")
    def _fitting(self) -> Shape:
        if any(len(points) != len(self.edges) + 1 for points in (self.points, *self.by_intention.values())):
            raise ValueError("a shape has one step more than it has edges")
        if list(self.edges) != sorted(self.edges):
            raise ValueError("edges must ascend")
        return self

    def at(self, value: float, intention: Intention) -> float:
        """The contribution of a value, in points of emotion."""
        step = bisect_right(self.edges, value)
        extra = self.by_intention.get(intention)
        return self.points[step] + (extra[step] if extra else 0.0)


class Provenance(Frozen):
    """What a fit has seen."""

    language: str = ""
    """Language of the recorded dialogues."""
    files: tuple[str, ...] = ()
    """Names of the transcript files, one a model."""
    dialogues: int = 0
    replies: int = 0
    method: str = ""
    rlver: str = ""


class Weights(Frozen):
    """A fitted judgement."""

    version: int = 1
    provenance: Provenance
    base: dict[Intention, float]
    """Points that every reply gets, by hidden intention."""
    plain: dict[Intention, float] = Field(default={})
    """Points of a reply of usual length none of whose cues is above its first step, by hidden intention."""
    shapes: dict[str, Shape]
    big_step: tuple[float, float] = Field(default=(-7.5, 7.5))
    """From which total on, downwards and upwards, a change is 10 rather than 5: set so that steps of 10 are as
    frequent as recorded."""

    def contributions(self, values: Mapping[str, float], intention: Intention) -> dict[str, float]:
        """Points by cue, for the cues of `values`."""
        steps = self._steps[intention]
        found = {}
        for cue, value in values.items():
            if step := steps.get(cue):
                edges, points = step
                found[cue] = points[bisect_right(edges, value)]
        return found

    @cached_property
    def _steps(self) -> dict[Intention, dict[str, _Steps]]:
        """By intention and cue: the edges, and the points that a user with this intention gives between them."""
        return {
            intention: {
                cue: (shape.edges, tuple([shape.at(value, intention) for value in (-inf, *shape.edges)]))
                for cue, shape in self.shapes.items()
            }
            for intention in Intention
        }

    @property
    def mark(self) -> str:
        """Eight hex digits that stand for all the numbers."""
        return digest(self.model_dump_json(exclude={"provenance"}))


@cache
def default_weights() -> Weights:
    """The weights that ship with the package."""
    return Weights.model_validate_json(read_text("rlver.users.embedded", "data/weights.json"))


def read_weights(path: Path) -> Weights:
    """Weights from a file. Raises RlverError, naming the file, if it is missing or no weights."""
    if not path.exists():
        raise RlverError(f"{path}: there is no such file; `rlver judge fit --out {path}` makes one.")
    try:
        return Weights.model_validate_json(read_file(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise RlverError(f"{path}: these are no weights ({field}: {first['msg']}).") from None
