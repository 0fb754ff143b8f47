"""Checkpoints: everything that a run needs to go on as if it had never stopped, in safetensors and JSON.

Random numbers need no saving: whatever is drawn in a step is drawn from the run's seed and the number of the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.policies.folder import ADAPTER_WEIGHTS, load_adapter
from rlver.train.models.adapters import has_adapters
from rlver.train.models.critic import AdapterCritic, Critic

_KEEP = 2


def save_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """Save a policy as a folder that `transformers` loads, with `rlver.json` saying what it was trained for."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "rlver.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class Checkpoints:
    """The checkpoints of a run, in one folder; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(self.folder.glob("step-??????"))
        return found[-1] if found else None

    def of(self, step: int) -> Path:
        """Where the checkpoint after so many steps lies, or will."""
        return self.folder / f"step-{step:06d}"

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: dict[str, Any],
        critic: Critic | AdapterCritic | None,
        optimizers: Mapping[str, Optimizer],
    ) -> Path:
        """Write the state after `step` steps. It appears under its name only when it is whole."""
        target = self.of(step)
        part = self.folder / f".part-{step:06d}"
        shutil.rmtree(part, ignore_errors=True)
        save_policy(part / "policy", model, tokenizer, facts)
        if critic is not None:
            save_file(_untied(critic), part / "critic.safetensors")
        for name, optimizer in optimizers.items():
            save_file(_optimizer_tensors(optimizer), part / f"{name}.safetensors")
        (part / "state.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        for old in sorted(self.folder.glob("step-??????"))[:-_KEEP]:
            shutil.rmtree(old)
        return target

    def load(
        self,
        folder: Path,
        model: PreTrainedModel,
        critic: Critic | AdapterCritic | None,
        optimizers: Mapping[str, Optimizer],
    ) -> int:
        """Restore a checkpoint into these objects and return its step.

        Raises:
            RlverError: the checkpoint is damaged or belongs to another model.
        """
        try:
            step = _read_step(folder / "state.json")
            if has_adapters(model):
                load_adapter(model, load_file(folder / "policy" / ADAPTER_WEIGHTS))
            else:
                _load_into(model, load_file(folder / "policy" / "model.safetensors"))
            if critic is not None:
                _load_into(critic, load_file(folder / "critic.safetensors"))
            for name, optimizer in optimizers.items():
                _restore_optimizer(optimizer, load_file(folder / f"{name}.safetensors"))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise RlverError(f"{folder}: this checkpoint is damaged ({error}).") from None
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RlverError(f"{folder}: this checkpoint belongs to another model ({reason}).") from None
        return step


def _read_step(file: Path) -> int:
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError):
        raise OSError(f"{file.name} holds no step") from None


def _untied(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict in which no two tensors share memory, as safetensors wants it."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    return tensors


def _load_into(module: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    tied = set(module.state_dict()) - set(_untied(module))
    if unexpected or set(missing) - tied:
        raise KeyError(f"tensors differ: {sorted(set(missing) - tied | set(unexpected))[:3]}")


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": torch.as_tensor(value).contiguous() for i, slots in state.items() for key, value in slots.items()
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
