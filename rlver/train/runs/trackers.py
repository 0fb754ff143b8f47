"""Trackers: where the metrics and sample dialogues of a run are shown. TensorBoard is always on, others are optional.

None of them needs a network: W&B writes offline unless WANDB_MODE says otherwise, MLflow writes into the run's folder
unless MLFLOW_TRACKING_URI says otherwise, and trackio is local. A tracker that fails during a run does not stop it: the
first failure is logged, all are counted, and after three in a row the tracker is no longer called.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from time import time
from typing import Any, Protocol

from rlver.core.errors import RlverError
from rlver.train.config import TrackerName
from rlver.train.runs.run_folder import read_json, write_json

_PROJECT = "rlver"
_MAX_FAILURES = 3
"""Consecutive failures after which a tracker is no longer called."""
_log = logging.getLogger("rlver")


class Tracker(Protocol):
    """A place that shows a run. Any method may raise any exception."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def text(self, step: int, name: str, text: str) -> None:
        """Record a text of a step."""

    def close(self) -> None:
        """Called when the run has ended or was interrupted."""


class TensorBoard:
    """Event files in the run's folder. Events after the checkpoint from which a run is resumed are purged."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """See `Tracker.text`. The text is indented so that it is not rendered as Markdown."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class Wandb:
    """Weights & Biases. A resumed run keeps its id."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], key: str) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=name,
            id=key,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self._wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """See `Tracker.text`."""
        self._run.log({name: self._wandb.Table(columns=["step", name], data=[[step, text]])}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


class Trackio:
    """trackio. `trackio show --project rlver` shows the runs."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], key: str) -> None:
        self._trackio = importlib.import_module("trackio")
        self._run = self._trackio.init(
            project=_PROJECT,
            name=f"{name}-{key}",
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """See `Tracker.text`."""
        self._run.log({name: self._trackio.Markdown(f"```text\n{text.replace('```', '')}\n```")}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


class Mlflow:
    """MLflow, by default with a database in the run's folder.

    `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db` shows it.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], key: str) -> None:
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(tracking_uri=server or f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name(_PROJECT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(
                _PROJECT, artifact_location=None if server else (folder.resolve() / "mlflow").as_uri()
            )
        )
        earlier = self._client.search_runs([experiment_id], f"tags.rlver = '{key}'")
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(experiment_id, run_name=name, tags={_PROJECT: key}).info.run_id
        params = [self._entities.Param(setting, str(value)) for setting, value in config.items()]
        self._client.log_batch(self._id, params=params)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        now = int(1000 * time())
        self._client.log_batch(
            self._id, metrics=[self._entities.Metric(name, float(value), now, step) for name, value in values.items()]
        )

    def text(self, step: int, name: str, text: str) -> None:
        """See `Tracker.text`."""
        self._client.log_text(self._id, text, f"{name}/step-{step:06d}.txt")

    def close(self) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self._id)


_KINDS: dict[TrackerName, Callable[[Path, str, Mapping[str, Any], str], Tracker]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Check that all trackers can be imported, before anything slow begins. Raises RlverError if one cannot."""
    for name in names:
        try:
            with redirect_stdout(sys.stderr):
                importlib.import_module(name)
        except ImportError as error:
            missing = getattr(error, "name", None) == name
            problem = "is not installed" if missing else f"cannot be imported ({error})"
            raise RlverError(f"the tracker {name} {problem}: pip install {name}") from None


class Trackers:
    """All trackers of a run.

    Args:
        done: number of steps that were done before, if the run is resumed.

    Raises:
        RlverError: a tracker is not installed or cannot be opened.
    """

    def __init__(self, names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any], done: int) -> None:
        self.failures: Counter[str] = Counter()
        """Number of records that each tracker failed to store."""
        self._consecutive: Counter[str] = Counter()
        check_trackers(names)
        self._open: dict[str, Tracker] = {"tensorboard": TensorBoard(folder, done)}
        for name in names:
            try:
                with redirect_stdout(sys.stderr):  # standard output is for results
                    self._open[name] = _KINDS[name](folder, folder.resolve().name, config, _key(folder))
            except Exception as error:  # whatever a tracker may raise
                self.close()
                raise RlverError(f"the tracker {name} cannot be opened ({_first_line(error)}).") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._each(lambda tracker: tracker.log(step, values))

    def text(self, step: int, name: str, text: str) -> None:
        """Record a text of a step."""
        self._each(lambda tracker: tracker.text(step, name, text))

    def close(self) -> None:
        """Close all trackers."""
        self._each(lambda tracker: tracker.close(), closing=True)

    def _each(self, call: Callable[[Tracker], None], closing: bool = False) -> None:
        for name, tracker in self._open.items():
            if self._consecutive[name] >= _MAX_FAILURES and not closing:
                self.failures[name] += 1
                continue
            try:
                with redirect_stdout(sys.stderr):
                    call(tracker)
                self._consecutive[name] = 0
            except Exception as error:  # no failure of a tracker may stop the run
                self.failures[name] += 1
                self._consecutive[name] += 1
                if self.failures[name] == 1:
                    _log.warning("The tracker %s failed (%s); the run continues without it.", name, _first_line(error))


def _key(folder: Path) -> str:
    """The id of a run in trackers. It is drawn once and kept in the run's folder."""
    file = folder / "trackers.json"
    record = read_json(file)
    if "key" not in record:
        record = {"key": uuid.uuid4().hex[:12]}
        write_json(file, record)
    return str(record["key"])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
