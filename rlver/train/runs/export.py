"""Export: a trained policy as a folder to share, which `transformers` loads without RLVER. Nothing is uploaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import AutoTokenizer

from rlver.core.errors import RlverError
from rlver.inference.model_folder import ADAPTER_CONFIG, load_model
from rlver.policies.load import POLICY_FILE, read_policy_info
from rlver.train.runs.card import Results, Subject, model_card, own_results, read_results
from rlver.train.runs.checkpoint import write_policy
from rlver.train.runs.run_folder import atomic_folder, read_json

Format = Literal["merged", "adapter"]


class Source(NamedTuple):
    """The policy to export."""

    policy: Path
    """The policy's folder."""
    run: Path | None
    """The folder of its run; None if it is not part of a run."""


def export(
    path: Path, out: Path, *, kind: Format = "merged", results: Path | None = None, base_model: str | None = None
) -> Path:
    """Write the policy of a run, a checkpoint or a policy folder into `out`, with a model card.

    Args:
        kind: `merged` writes a complete model; `adapter` keeps a LoRA adapter as it is.
        results: `results.json` of `rlver bench` for the card; by default the run's own evaluation is used.
        base_model: name of the starting model on the hub, for the card and the config of an adapter.

    Raises:
        RlverError: the policy does not exist or cannot be loaded, `out` is not empty, or the results are those of other
            policies.
    """
    source = find_source(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
        raise RlverError(f"{out}: exists already; choose another --out.")
    adapter = (source.policy / ADAPTER_CONFIG).is_file()
    if kind == "adapter" and not adapter:
        raise RlverError(f"{source.policy}: holds a whole model and no adapter; leave out --format adapter.")
    read_policy_info(source.policy)  # raises if the file is broken
    facts = read_json(source.policy / POLICY_FILE)
    measured: Results | None = read_results(results, source.policy) if results else own_results(source.run, facts)
    with atomic_folder(out) as part:
        if kind == "adapter":
            _copy_adapter(source.policy, part, base_model)
        else:
            model, tokenizer = _merged(source) if adapter else load_model(source.policy)
            write_policy(part, model, tokenizer, facts)
        subject = Subject(out.resolve().name, facts, read_json(source.run / "config.json") if source.run else {})
        card = model_card(subject, measured, adapter=kind == "adapter", base_model=base_model)
        (part / "README.md").write_text(card, encoding="utf-8")
    return out


def find_source(path: Path) -> Source:
    """The policy of a run, a checkpoint, or a policy folder.

    Raises:
        RlverError: the path is none of them, or a run that has not ended.
    """
    if not path.is_dir():
        raise RlverError(f"{path}: there is no such folder; name a run, one of its checkpoints or a policy folder.")
    policy = path if _is_policy(path) else path / "policy"
    if not _is_policy(policy):
        checkpoints = sorted((path / "checkpoints").glob("step-??????"))
        if checkpoints:
            raise RlverError(f"{path}: this run has not ended; continue it with --resume, or export {checkpoints[-1]}.")
        raise RlverError(f"{path}: is neither a run that has ended, nor a checkpoint, nor a policy folder.")
    runs = [folder for folder in policy.resolve().parents if "versions" in read_json(folder / "config.json")]
    return Source(policy, runs[0] if runs else None)


def _is_policy(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() or "model_type" in read_json(folder / "config.json")


def _merged(source: Source) -> tuple[Any, Any]:
    """The base model with the adapter merged into it, and its tokenizer."""
    try:
        from peft import PeftModel
    except ImportError:
        raise RlverError(
            f"{source.policy}: merging an adapter needs peft: pip install 'rlver[lora]', or choose --format adapter."
        ) from None
    recorded = Path(str(read_json(source.policy / ADAPTER_CONFIG).get("base_model_name_or_path")))
    candidates = [recorded, source.policy / recorded, *([source.run / "base"] if source.run else [])]
    base = next((folder for folder in candidates if (folder / "config.json").is_file()), None)
    if base is None:
        raise RlverError(f"{source.policy}: the adapter's base {recorded} does not exist; --format adapter needs none.")
    model, _ = load_model(base)
    try:
        merged = PeftModel.from_pretrained(model, str(source.policy)).merge_and_unload()
        tokenizer = AutoTokenizer.from_pretrained(source.policy, local_files_only=True)
    except Exception as error:  # many types; all mean that the two do not fit
        reason = " ".join(str(error).split())[:200]
        raise RlverError(f"{source.policy}: the adapter does not fit its base {base} ({reason}).") from error
    return merged, tokenizer


def _copy_adapter(policy: Path, out: Path, base_model: str | None) -> None:
    """Copy an adapter's files. Its config names the base as others know it, never by a path on this machine."""
    for file in policy.iterdir():
        if file.is_file():
            shutil.copy(file, out)
    settings = read_json(policy / ADAPTER_CONFIG)
    recorded = str(settings.get("base_model_name_or_path") or "")
    if Path(recorded).is_absolute():
        recorded = Path(recorded).name
    settings["base_model_name_or_path"] = base_model or recorded
    (out / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
