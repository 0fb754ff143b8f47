"""The files of a run, written so that a kill at any moment leaves them complete or repairable."""

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
from rlver.core.files import LOCK, locked_folder, read_file, replace_file
from rlver.train.config import TrainConfig

_MAY_CHANGE = {
    "steps", "save_every", "keep_last", "keep_best", "sample_every", "trackers", "eval_every", "stop_on_collapse",
    "collapse_window", "collapse_entropy", "collapse_kl", "collapse_repeated", "collapse_bad_format",
    "collapse_reward", "collapse_patience", "device_memory_gb", "gradient_checkpointing", "offload_optimizer",
    "offload_reference", "logit_tokens",
}  # fmt: skip
"""Settings that a resumed run may change: what it writes, when it ends, and where things lie in memory, but nothing
that changes what a step learns."""


def check_folder(folder: Path, config: TrainConfig, resume: bool, reward: str | None = None) -> None:
    """Check that the folder is free or, if a run is to be resumed, that it holds this very run.

    Args:
        reward: name of the run's own reward, if it has one.

    Raises:
        RlverError: the folder holds something else, a run that is not to be resumed, or one with other settings.
    """
    if not resume and not (folder / "config.json").exists():
        unrelated = sorted(path.name for path in folder.iterdir() if not _is_ours(path)) if folder.is_dir() else []
        if unrelated:
            raise RlverError(
                f"{folder}: holds {unrelated[0]}, which is not part of a run; choose a new or an empty folder as --out."
            )
        return
    stored = TrainConfig().model_dump(mode="json") | stored_config(folder)  # older runs lack newer settings
    if not resume:
        raise RlverError(f"{folder}: already holds a run; add --resume to continue it, or choose another --out.")
    current = config.model_dump(mode="json")
    changed = [
        f"{key}: {stored.get(key)!r} -> {current[key]!r}"
        for key in current
        if stored.get(key) != current[key] and key not in _MAY_CHANGE
    ]
    description = read_json(folder / "config.json")
    stored_hash = description.get("profiles_hash")
    if stored_hash is not None and stored_hash != profiles_hash(config):
        changed.append(f"{config.profiles} holds other profiles now")
    if description.get("reward") != reward:
        changed.append(f"reward: {description.get('reward')!r} -> {reward!r}")
    if changed:
        raise RlverError(f"{folder}: the run was started with another configuration ({'; '.join(changed)}).")


@contextmanager
def claimed(folder: Path, config: TrainConfig, resume: bool, reward: str | None = None) -> Iterator[None]:
    """Inside the `with` block, the folder belongs to this process. It is new, or it holds this very run.

    Raises:
        RlverError: see `check_folder`; or another process is using the folder.
    """
    check_folder(folder, config, resume, reward)
    with locked_folder(folder):
        for part in (*folder.glob(".part-*"), *folder.glob("*/.part-*")):  # half-written by a process that was killed
            shutil.rmtree(part, ignore_errors=True)
        yield


def profiles_hash(config: TrainConfig) -> str | None:
    """Hash of the file of profiles that a run trains on; None if they are generated."""
    return digest(read_file(Path(config.profiles))) if config.profiles else None


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings that a run was started with. Raises RlverError if they cannot be read."""
    file = folder / "config.json"
    if not file.is_file():
        raise RlverError(f"{folder}: holds no run to continue ({file.name} is missing).")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlverError(f"{file}: this is not the configuration of a run ({error}).") from None
    if not isinstance(config, dict):
        raise RlverError(f"{file}: this is not the configuration of a run.")
    if "simulator" in config:  # earlier versions called the user `simulator` and its type `user`
        config["user_type"], config["user"] = config["user"], config.pop("simulator")
    return config


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a folder to write into. It gets its name when all is written, and then replaces an older one.

    Raises:
        RlverError: it cannot be written, for example because the disk is full; the older folder is still there.
    """
    target = target.resolve()  # "." has no name
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _explaining_errors(target):
            part.mkdir(parents=True)
            yield part
            remove(target)
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder if it exists. It is renamed first, so that a half-deleted folder never has its name."""
    renamed = folder.with_name(f".part-old-{folder.name}")
    shutil.rmtree(renamed, ignore_errors=True)
    if folder.exists():
        os.replace(folder, renamed)
        shutil.rmtree(renamed)


def append(file: Path, record: dict[str, Any]) -> None:
    """Append a record as a line of JSON. Raises RlverError if it cannot be written."""
    with _explaining_errors(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def truncate(file: Path, steps: int) -> None:
    """Drop the records after step `steps`, which will be done again, and a line that a kill cut off."""
    if not file.is_file():
        return
    lines = []
    for line in file.read_bytes().split(b"\n"):  # as bytes, because a character may be cut off, too
        try:
            if json.loads(line)["step"] <= steps:
                lines.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            break  # the end of the file, or the one broken line
    _replace(file, b"".join(lines))


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write an object as JSON, completely or not at all. Raises RlverError if it cannot be written."""
    _replace(file, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or broken."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_ours(path: Path) -> bool:
    """Whether a run may have left this behind before it wrote its config."""
    return path.name == LOCK or path.name.startswith(".part-")


def _replace(file: Path, content: bytes) -> None:
    with _explaining_errors(file):
        replace_file(file, content)


@contextmanager
def _explaining_errors(target: Path) -> Iterator[None]:
    """Turn errors of writing into an RlverError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise RlverError(
            f"{target}: cannot be written ({reason}); make room, then try again (a run continues with --resume from "
            "its last checkpoint, which is kept)."
        ) from None
