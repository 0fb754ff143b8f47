"""Trackers: what they record, and that a run survives their failures."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import lines, quick, same

from rlver.cli.main import main
from rlver.core.errors import RlverError
from rlver.train.config import load_config
from rlver.train.runs.outcome import read_outcome
from rlver.train.runs.training_run import run

NAMES = ("wandb", "trackio", "mlflow")


class Fake(ModuleType):
    """Replaces all three libraries, and records their calls. Some calls may fail."""

    def __init__(self, name: str, fails: tuple[str, ...] = ()) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails = fails
        self.known: list[Any] = []
        for method in ("init", "log", "finish", "create_run", "log_batch", "log_text", "set_terminated"):
            setattr(self, method, self._method(method))
        for kind in ("Settings", "Table", "Markdown", "Metric", "Param"):
            setattr(self, kind, lambda *arguments, **named: SimpleNamespace(a=arguments, **named))
        self.entities = self

    def _method(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if name in self.fails:
                raise ConnectionError("the network\nis down")
            print("a library that talks")
            self.calls.append((name, arguments, named))
            if name == "create_run":
                self.known.append(SimpleNamespace(info=SimpleNamespace(run_id="r1")))
            return self.known[-1] if name == "create_run" else self

        return call

    def MlflowClient(self, **named: Any) -> Fake:
        self.calls.append(("client", (), named))
        return self

    def get_experiment_by_name(self, _: str) -> None:
        return None

    def create_experiment(self, _: str, **__: Any) -> str:
        return "e1"

    def search_runs(self, *_: Any) -> list[Any]:
        return self.known

    def update_run(self, *_: Any, **named: Any) -> None:
        self.calls.append(("update_run", (), named))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The calls of a method."""
        return [(arguments, named) for call, arguments, named in self.calls if call == name]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """All three libraries, replaced."""
    found = {name: Fake(name) for name in NAMES}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", found["mlflow"])
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return found


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_tensorboard_shows_metrics_times_and_dialogues(whole: dict[str, Path]) -> None:
    found = events(whole["grpo"])
    records = lines(whole["grpo"])
    for name in ("reward", "kl", "tokens_per_reply"):
        assert [event.value for event in found.Scalars(name)] == pytest.approx([r[name] for r in records])
    assert [event.step for event in found.Scalars("seconds")] == [1, 2, 3, 4]
    texts = [tag for tag in found.Tags()["tensors"] if tag.startswith("samples/")]
    assert len(texts) == len(lines(whole["grpo"], "samples.jsonl")) == 4
    text = found.Tensors(texts[0])[0].tensor_proto.string_val[0].decode()
    assert "final score" in text and all(line.startswith("    ") for line in text.splitlines())


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (10, [4]), (0, [])])
def test_samples_come_as_often_as_asked(base: Path, tmp_path: Path, every: int, steps: list[int]) -> None:
    run(quick(base, sample_every=every), base, tmp_path)
    found = lines(tmp_path, "samples.jsonl") if steps else []
    assert sorted({sample["step"] for sample in found}) == steps
    assert steps or not (tmp_path / "samples.jsonl").exists()
    tags = [tag for tag in events(tmp_path).Tags()["tensors"] if tag.startswith("samples/")]
    assert [event.step for event in events(tmp_path).Tensors(tags[0])] == steps if steps else not tags


def test_every_tracker_records_everything(
    base: Path, whole: dict[str, Path], tmp_path: Path, fakes: dict[str, Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    run(quick(base, trackers=NAMES), base, folder)
    assert same(folder, whole["grpo"]), "they only watch"
    records = lines(folder)
    for name in ("wandb", "trackio"):
        logs = fakes[name].of("log")
        scalars = [(named["step"], values) for (values,), named in logs if "reward" in values]
        assert [(step, values["kl"]) for step, values in scalars] == [(r["step"], r["kl"]) for r in records]
        assert all("seconds" in values for _, values in scalars)
        assert sum(any(key.startswith("samples/") for key in values) for (values,), _ in logs) == 4
        ((_, opened),) = fakes[name].of("init")
        assert opened["project"] == "rlver" and opened["config"]["algo"] == "grpo" and "mine" in opened["name"]
        assert len(fakes[name].of("finish")) == 1
    wandb = fakes["wandb"].of("init")[0][1]
    assert wandb["mode"] == "offline" and wandb["dir"] == str(folder) and wandb["resume"] == "allow"
    mlflow = fakes["mlflow"]
    assert mlflow.of("client")[0][1]["tracking_uri"] == f"sqlite:///{folder.resolve()}/mlflow.db"
    batches = [named["metrics"] for _, named in mlflow.of("log_batch") if "metrics" in named]
    logged = [{metric.a[0]: metric.a[1] for metric in batch} for batch in batches]
    assert [values["reward"] for values in logged] == [record["reward"] for record in records]
    assert {metric.a[3] for metric in batches[2]} == {3}
    assert len(mlflow.of("log_text")) == 4 and len(mlflow.of("set_terminated")) == 1
    assert capsys.readouterr().out == "", "standard output is for results"
    assert read_outcome(folder).tracker_failures == {}


def test_a_resumed_run_goes_on_under_its_name(base: Path, tmp_path: Path, fakes: dict[str, Fake]) -> None:
    for steps in (2, 4):
        run(quick(base, trackers=NAMES, steps=steps), base, tmp_path, resume=steps == 4)
    for name, key in (("wandb", "id"), ("trackio", "name")):
        first, second = (named[key] for _, named in fakes[name].of("init"))
        assert first == second
    assert len(fakes["mlflow"].of("create_run")) == 1 and fakes["mlflow"].of("update_run")


def test_environment_variables_decide_where_it_goes(
    base: Path, tmp_path: Path, fakes: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    run(quick(base, trackers=("wandb", "mlflow"), steps=1), base, tmp_path)
    assert fakes["wandb"].of("init")[0][1]["mode"] == "online"
    assert fakes["mlflow"].of("client")[0][1]["tracking_uri"] == "http://localhost:5000"


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_does_not_end_the_run(
    base: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    fakes: dict[str, Fake],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    fakes[name].fails = ("log", "log_text", "finish", "set_terminated")
    with caplog.at_level(logging.WARNING, "rlver"):
        run(quick(base, trackers=(name,)), base, tmp_path)
    assert same(tmp_path, whole["grpo"])
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and name in warnings[0] and "the network" in warnings[0] and "\n" not in warnings[0]
    failures = read_outcome(tmp_path).tracker_failures
    # Metrics of four steps (MLflow takes those), four dialogues, and the end.
    assert failures == {name: 5 if name == "mlflow" else 9}


def test_a_tracker_that_keeps_failing_is_left_alone(base: Path, tmp_path: Path, fakes: dict[str, Fake]) -> None:
    """Each failure may have cost minutes of waiting for a server."""
    tries: list[int] = []

    def log(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise ConnectionError("down")

    fakes["wandb"].log = log
    run(quick(base, trackers=("wandb",)), base, tmp_path)
    assert len(tries) == 3 and read_outcome(tmp_path).tracker_failures == {"wandb": 8}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tracker_is_reported_before_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what `import` makes of it: it is not there
    monkeypatch.setattr("rlver.cli.train.base_of", lambda _: pytest.fail("pretraining has begun"))
    assert main(["train", "--track", name, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("Error: ") and f"pip install {name}" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(RlverError, match=f"pip install {name}"):
        run(quick(base, trackers=(name,)), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_cannot_be_opened_is_reported(base: Path, tmp_path: Path, fakes: dict[str, Fake]) -> None:
    fakes["wandb"].fails = ("init",)
    with pytest.raises(RlverError, match=r"tracker wandb cannot be opened \(the network\)"):
        run(quick(base, trackers=("trackio", "wandb")), base, tmp_path)
    assert fakes["trackio"].of("finish"), "those that were open are closed"


def test_the_command_tracks(
    base: Path, tmp_path: Path, fakes: dict[str, Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    fakes["mlflow"].fails = ("log_text",)
    settings = [part for setting in ("batch=4", "group=2", "max_tokens=6") for part in ("--set", setting)]
    command = ["train", "--policy", str(base), "--out", str(tmp_path), "--steps", "1", *settings]
    assert main([*command, "--track", "trackio", "--track", "mlflow"]) == 0
    assert fakes["trackio"].of("log") and fakes["mlflow"].of("log_batch") and not fakes["wandb"].calls
    assert "The tracker mlflow lost 4 records." in capsys.readouterr().err
    assert main([*command, "--track", "clippy"]) == 1
    assert "'wandb', 'trackio' or 'mlflow'" in capsys.readouterr().err
    assert load_config(None, ["trackers=[wandb]"], {}).trackers == ("wandb",)
