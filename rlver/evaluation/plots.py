"""Pictures of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects


def learning_curve(metrics_files: Mapping[str, Path], out: Path) -> Path:
    """Write the picture of `draw_learning_curve` as a PNG and return `out`.

    Raises:
        RlverError: a file of metrics is missing, broken or has no point, or the picture cannot be written.
    """
    figure = draw_learning_curve(metrics_files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png")
    except OSError as error:
        raise RlverError(f"{out}: cannot be written ({error.strerror}).") from None
    return out


def draw_learning_curve(metrics_files: Mapping[str, Path]) -> Figure:
    """Draw the training reward x 100 over the steps, with one curve per run.

    Pale lines are the values, strong lines their moving average.

    Args:
        metrics_files: path of the `metrics.jsonl` of each run by its label. Each line with a `step` and a `reward`
            (0-1) is a point.

    Raises:
        RlverError: a file is missing, broken or has no point.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, path) in enumerate(metrics_files.items()):
        steps, rewards = _read_points(path)
        colour = f"C{number}"
        axes.plot(steps, rewards, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _moving_average(rewards), color=colour, linewidth=2, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean training reward x 100")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _read_points(path: Path) -> tuple[list[float], list[float]]:
    """The steps and the rewards x 100 of a run."""
    points: list[tuple[float, float]] = []
    for where, record in read_objects(path):
        if "step" in record and "reward" in record:
            try:
                points.append((float(record["step"]), 100.0 * float(record["reward"])))
            except (TypeError, ValueError):
                raise RlverError(f"{where}: step and reward must be numbers.") from None
    if not points:
        raise RlverError(f"{path}: no line has both a step and a reward, so there is no curve to draw.")
    return [step for step, _ in points], [reward for _, reward in points]


def _moving_average(values: Sequence[float]) -> list[float]:
    """Centred moving average over a tenth of the run. The window is narrower at both ends."""
    half = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
