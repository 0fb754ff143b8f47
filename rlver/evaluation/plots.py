"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects


def learning_curve(metrics_jsonl_paths: Mapping[str, Path], out: Path) -> Path:
    """Write the learning curves of `draw_learning_curve` as a PNG and return `out`.

    Raises:
        RlverError: a file is missing, broken or has no such line, or the picture cannot be written.
    """
    figure = draw_learning_curve(metrics_jsonl_paths)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png")
    except OSError as error:
        raise RlverError(f"{out}: cannot be written ({error.strerror}).") from None
    return out


def draw_learning_curve(metrics_jsonl_paths: Mapping[str, Path]) -> Figure:
    """Draw the training reward (x 100) over the steps, with one curve for each run.

    Args:
        metrics_jsonl_paths: label and `metrics.jsonl` of each run. Lines with a `step` and a `reward` (0-1) are points.

    Raises:
        RlverError: a file is missing, broken or has no such line.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, path) in enumerate(metrics_jsonl_paths.items()):
        steps, rewards = _points(path)
        colour = f"C{number}"
        axes.plot(steps, rewards, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _smooth(rewards), color=colour, linewidth=2, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean training reward x 100")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _points(path: Path) -> tuple[list[float], list[float]]:
    """Steps and rewards (x 100) of a run."""
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


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over a tenth of the run, centred; narrower at both ends."""
    half = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
