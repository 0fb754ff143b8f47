"""The files of a run, written so that a kill in any moment leaves them whole or mendable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlver.core.data import digest
from rlver.core.errors import RlverError
from rlver.core.files import LOCK, locked_folder, read_file
from rlver.train.config import TrainConfig

_MAY_CHANGE = {
    "steps", "save_every", "keep_last", "keep_best", "sample_every", "trackers", "eval_every", "stop_on_collapse",
    "collapse_window", "collapse_entropy", "collapse_kl", "collapse_repeated", "collapse_bad_format",
    "collapse_reward", "collapse_patience", "device_memory_gb", "gradient_checkpointing", "offload_optimizer",
    "offload_reference", "logit_tokens",
}  # fmt: skip
"""Settings of what a run leaves behind, when it ends and where things lie in memory: not of what a step learns."""


def check_folder(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Check that the folder is free, or holds this very run if it is to be resumed.

    Raises:
        RlverError: it holds something else, a run that was not to be resumed, or one with other settings.
    """
    if not resume and not (folder / "config.json").exists():
        strangers = sorted(path.name for path in folder.iterdir() if not _ours(path)) if folder.is_dir() else []
        if strangers:
            raise RlverError(f"{folder}: holds no run, but {strangers[0]}; choose a new or an empty folder as --out.")
        return
    defaults = json.loads(TrainConfig.model_validate({}).model_dump_json())
    stored = defaults | stored_config(folder)  # a run of an earlier version lacks what came later
    if not resume:
        raise RlverError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out.")
    current = json.loads(config.model_dump_json())
    changed = [
        f"{key}: {stored.get(key)!r} -> {current[key]!r}"
        for key in current
        if stored.get(key) != current[key] and key not in _MAY_CHANGE
    ]
    mark = read_json(folder / "config.json").get("profiles_hash")
    if mark is not None and mark != profiles_hash(config):
        changed.append(f"{config.profiles} holds other profiles now")
    if changed:
        raise RlverError(f"{folder}: the run was started with another configuration ({'; '.join(changed)}).")


@contextmanager
def claimed(folder: Path, config: TrainConfig, resume: bool) -> Iterator[None]:
    """Inside, the folder is ours: a new one, or one that holds this very run.

    Raises:
        RlverError: see `check_folder`; or another process is at work there.
    """
    check_folder(folder, config, resume)
    with locked_folder(folder):
        for part in (*folder.glob(".part-*"), *folder.glob("*/.part-*")):  # what a kill left half-written
            shutil.rmtree(part, ignore_errors=True)
        yield


def _ours(path: Path) -> bool:
    """Whether a run may have left this before it wrote its config."""
    return path.name == LOCK or path.name.startswith(".part-")


def profiles_hash(config: TrainConfig) -> str | None:
    """Stands for the profiles that a run trains with; None if they are generated."""
    return digest(read_file(Path(config.profiles))) if config.profiles else None


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was started with. Raises RlverError if it cannot be read."""
    file = folder / "config.json"
    if not file.is_file():
        raise RlverError(f"{folder}: holds no run to go on with ({file.name} is missing).")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlverError(f"{file}: this is no configuration of a run ({error}).") from None
    if not isinstance(config, dict):
        raise RlverError(f"{file}: this is no configuration of a run.")
    return config


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that gets its name only when everything is in it; an older one is then replaced.

    Raises:
        RlverError: it cannot be written, for example on a full disk; what was there before is still there.
    """
    target = target.resolve()  # "." has no name
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _telling(target):
            part.mkdir(parents=True)
            yield part
            remove(target)
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder, if there is one; half-deleted, it no longer has its name."""
    gone = folder.with_name(f".part-old-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        os.replace(folder, gone)
        shutil.rmtree(gone)


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a line. Raises RlverError if it cannot be written."""
    with _telling(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def cut(file: Path, steps: int) -> None:
    """Drop the lines after step `steps`: what follows will be done again. A line cut off by a kill goes too."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_bytes().split(b"\n"):  # as bytes: the cut may have gone through a character
        try:
            if json.loads(line)["step"] <= steps:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            break  # the end, or the one broken line, which is to be done again
    _replace(file, b"".join(kept))


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write an object, whole or not at all."""
    _replace(file, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace(file: Path, content: bytes) -> None:
    part = file.with_name(file.name + ".part")
    with _telling(file):
        part.write_bytes(content)
        part.replace(file)


@contextmanager
def _telling(target: Path) -> Iterator[None]:
    """Turn what goes wrong in writing into a sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise RlverError(
            f"{target}: cannot be written ({why}); make room, then try again (a run goes on with --resume from its "
            "last checkpoint, which is kept)."
        ) from None
