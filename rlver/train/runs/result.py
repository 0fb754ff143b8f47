"""A finished or interrupted run, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.evaluation.plots import draw_learning_curve, learning_curve
from rlver.evaluation.tables import need_pandas

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class TrainingRun:
    """The folder of a training run.

    Raises:
        RlverError: the folder holds no run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise RlverError(f"{folder}: there is no training run in this folder (config.json is missing).")

    @property
    def base(self) -> Path:
        """Folder of the policy that the run started from."""
        return self.folder / "base"

    @property
    def policy(self) -> Path:
        """Folder of the trained policy."""
        return self.folder / "policy"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each step."""
        path = self.folder / "metrics.jsonl"
        return [record for _, record in read_objects(path)] if path.exists() else []

    def to_pandas(self) -> pandas.DataFrame:
        """The metrics as a table with a row for each step. Raises RlverError if pandas is not installed."""
        frame = need_pandas()
        metrics = self.metrics
        return frame.DataFrame(metrics).set_index("step") if metrics else frame.DataFrame()

    def plot(self, path: str | Path | None = None) -> Figure:
        """The learning curve: reward x 100 over the steps.

        Args:
            path: also write it there as a PNG.
        """
        curves = {self.folder.resolve().name: self.folder / "metrics.jsonl"}
        if path is not None:
            learning_curve(curves, Path(path))
        return draw_learning_curve(curves)

    def __repr__(self) -> str:
        metrics = self.metrics
        reward = f", reward {metrics[0]['reward']:.2f} -> {metrics[-1]['reward']:.2f}" if metrics else ""
        return f"TrainingRun({str(self.folder)!r}: {len(metrics)} steps{reward})"
