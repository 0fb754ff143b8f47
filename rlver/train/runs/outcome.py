"""How a run ended: `outcome.json` in its folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.train.runs.run_folder import read_json, write_json
from rlver.train.runs.validation import Score

_NAME = "outcome.json"


class Outcome(Frozen):
    """How a run ended, and which of its policies is which."""

    steps: int
    """Steps that were done."""
    source: str
    """Where `policy/` comes from: "last", or the folder that it was copied from after a collapse."""
    collapse: str = ""
    """What collapsed; empty if nothing did."""
    score: Score | None = None
    """The last step's evaluation with the user type that the policy trained with; None if there was none."""
    best_step: int = 0
    """Step of the best evaluation; 0 if there was none."""
    best: Score | None = None
    """The best evaluation."""
    tracker_failures: dict[str, int] = Field(default_factory=dict)
    """Number of records that each tracker failed to store."""

    def write(self, folder: Path) -> None:
        """Write into the run's folder."""
        write_json(folder / _NAME, self.model_dump(mode="json"))

    @property
    def verdict(self) -> str:
        """One sentence that says whether the last or the best policy scored higher; empty without evaluations."""
        if self.best is None or self.score is None:
            return ""
        last = f"policy/ is the last (step {self.steps}, held-out score {self.score})"
        if self.best_step == self.steps:
            return f"{last}; no earlier evaluation was better."
        if self.score.mean == self.best.mean:
            return f"{last}; step {self.best_step} scored as high before."
        within = self.score.low <= self.best.mean <= self.score.high
        how = "better, within the interval" if within else "better"
        return f"{last}; best/ is {how} (step {self.best_step}, {self.best})."


def read_outcome(folder: Path) -> Outcome:
    """The outcome of the run in a folder. Raises RlverError if there is none."""
    try:
        return Outcome.model_validate(read_json(folder / _NAME))
    except ValidationError:
        raise RlverError(f"{folder}: this run has not ended yet ({_NAME} is missing or broken).") from None
