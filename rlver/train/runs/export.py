"""Export: a trained policy as a folder to share, which plain `transformers` loads. Nothing is uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from rlver.core.errors import RlverError
from rlver.policies.local import load_model
from rlver.policies.resolve import FOLDER_FILE
from rlver.train.runs.card import model_card
from rlver.train.runs.checkpoint import save_policy
from rlver.train.runs.files import read_json, whole_folder

Format = Literal["merged", "adapter"]
_ADAPTER = "adapter_config.json"


class Source(NamedTuple):
    """What is exported."""

    policy: Path
    """The policy's folder."""
    run: Path | None
    """The run that it comes from, if it still lies in it."""


def find_source(path: Path) -> Source:
    """The policy that a run's folder, a checkpoint or a policy folder stands for.

    Raises:
        RlverError: it is none of them, or a run that has not ended.
    """
    if not path.is_dir():
        raise RlverError(f"{path}: there is no such folder; name a run, one of its checkpoints or a policy folder.")
    policy = path
    if not _is_policy(path):
        policy = path / "policy"
        if not _is_policy(policy):
            found = sorted((path / "checkpoints").glob("step-??????"))
            hint = f": the run has not ended; export {found[-1]}" if found else " of a run, a checkpoint or a policy"
            raise RlverError(f"{path}: is no folder{hint}." if not found else f"{path}{hint}.")
    runs = [folder for folder in policy.resolve().parents if "versions" in read_json(folder / "config.json")]
    return Source(policy, runs[0] if runs else None)


def export(
    path: Path, out: Path, *, kind: Format = "merged", results: Path | None = None, base_model: str | None = None
) -> Path:
    """Write the policy of a run, a checkpoint or a policy folder into `out`, with a model card.

    Args:
        kind: `merged` is a whole model; `adapter` leaves a LoRA adapter as it is.
        results: `results.json` of `rlver bench` for the card; by default what the run measured itself.
        base_model: name of the starting model on the hub, for the card and an adapter's settings.

    Raises:
        RlverError: there is no such policy, it cannot be loaded, `out` holds something, or the results are not of it.
    """
    source = find_source(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlverError(f"{out}: is there already; choose another --out.")
    is_adapter = (source.policy / _ADAPTER).is_file()
    if kind == "adapter" and not is_adapter:
        raise RlverError(f"{source.policy}: holds a whole model and no adapter; leave out --format adapter.")
    note = read_json(source.policy / FOLDER_FILE)
    card = model_card(source.policy, source.run, note, kind, results, base_model)
    with whole_folder(out) as part:
        if kind == "adapter":
            _copy_adapter(source.policy, part, base_model)
        else:
            model, tokenizer = load_model(_base_of(source) if is_adapter else source.policy)
            if is_adapter:
                tokenizer = load_tokenizer(source.policy)
                model = _merge(model, source.policy)
            save_policy(part / "model", model, tokenizer, note)
            for file in (part / "model").iterdir():
                file.replace(part / file.name)
            (part / "model").rmdir()
        (part / "README.md").write_text(card, encoding="utf-8")
    return out


def _is_policy(folder: Path) -> bool:
    return (folder / _ADAPTER).is_file() or "model_type" in read_json(folder / "config.json")
