"""Checkpoints: everything that a run needs to continue as if it had never stopped, in safetensors and JSON.

The state of random number generators need not be saved, because everything random in a step, its profiles included, is
drawn from the run's seed and the number of the step. The learning rates follow from that number, too. The rest of the
state is a small dictionary in state.json: the best evaluation so far, the windows of the collapse rules, and the
curriculum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.inference.model_folder import ADAPTER_WEIGHTS, has_adapters, load_adapter, save_adapter
from rlver.policies.load import POLICY_FILE
from rlver.policies.local import end_tokens
from rlver.train.models.critic import AdapterCritic, Critic
from rlver.train.runs.run_folder import atomic_folder, remove


def save_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """Save a policy as a folder that `transformers` loads and samples from as in training.

    An older folder is replaced.

    Args:
        facts: how the policy was trained, for `rlver.json` in the folder.
    """
    with atomic_folder(folder) as part:
        write_policy(part, model, tokenizer, facts)


def write_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """Write the files of a policy folder one by one; see `save_policy`."""
    folder.mkdir(exist_ok=True)
    # Set before saving: `transformers` does not save a model whose own generation settings contradict each other.
    model.generation_config = generation_config(tokenizer, facts, end_tokens(model))
    if has_adapters(model):
        save_adapter(model, folder)
        model.generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / POLICY_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def generation_config(
    tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any], ends: Sequence[int] = ()
) -> GenerationConfig:
    """Settings that sample as in training: at its temperature, from the whole distribution, up to a closing token.

    Args:
        ends: ids at which the model's own settings end a reply; some models have several.
    """
    stop = tokenizer.eos_token_id
    all_ends = sorted({*ends, *([] if stop is None else [stop])})
    pad = tokenizer.pad_token_id
    temperature = facts.get("temperature", 1.0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **(sampling if temperature else {"do_sample": False}),
        max_new_tokens=facts.get("max_tokens", 256),
        eos_token_id=all_ends[0] if len(all_ends) == 1 else all_ends,
        pad_token_id=stop if pad is None else pad,
    )


class Checkpoints:
    """The checkpoints of a run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-??????"))

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.all()), None)

    def before(self, step: int) -> Path | None:
        """The newest complete checkpoint after fewer than `step` steps."""
        return next((checkpoint for checkpoint in reversed(self.all()) if step_of(checkpoint) < step), None)

    def path(self, step: int) -> Path:
        """The path of the checkpoint after `step` steps, whether it exists or not."""
        return self.folder / f"step-{step:06d}"

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: dict[str, Any],
        critic: Critic | AdapterCritic | None,
        optimizers: Mapping[str, Optimizer],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint after `step` steps. It appears under its name only when it is complete.

        Args:
            facts: how the policy was trained; see `save_policy`.
            state: JSON values for state.json.

        Raises:
            RlverError: it cannot be written, for example because the disk is full; earlier checkpoints are kept.
        """
        target = self.path(step)
        with atomic_folder(target) as part:
            write_policy(part / "policy", model, tokenizer, facts)
            if critic is not None:
                save_file(_untied(critic), part / "critic.safetensors")
            for name, optimizer in optimizers.items():
                save_file(_optimizer_tensors(optimizer), part / f"{name}.safetensors")
            (part / "state.json").write_text(json.dumps({"step": step, **state}) + "\n", encoding="utf-8")
        return target

    def prune(self, keep: int, recent: int = 0) -> None:
        """Delete old checkpoints, except the last `keep`.

        With `recent`, the newest checkpoint from before the last `recent` steps and its successor are kept, too. There
        is then always a checkpoint from before these steps, if there ever was one, and it is at most twice as old as
        necessary plus the steps between two checkpoints.
        """
        checkpoints = self.all()
        limit = step_of(checkpoints[-1]) - recent
        older = [checkpoint for checkpoint in checkpoints if step_of(checkpoint) <= limit]
        retained = {*checkpoints[-keep:]}
        if recent:
            retained |= {*older[-1:], *checkpoints[len(older) : len(older) + 1]}
        for checkpoint in checkpoints:
            if checkpoint not in retained:
                remove(checkpoint)

    def load(
        self,
        folder: Path,
        model: PreTrainedModel,
        critic: Critic | AdapterCritic | None,
        optimizers: Mapping[str, Optimizer],
    ) -> dict[str, Any]:
        """Restore a checkpoint into these objects. Returns its state, with the number of steps done as `step`.

        Raises:
            RlverError: the checkpoint is damaged or belongs to another model.
        """
        try:
            state = _read_state(folder / "state.json")
            load_weights(model, folder / "policy")
            if critic is not None:
                _load_into(critic, load_file(folder / "critic.safetensors"))
            for name, optimizer in optimizers.items():
                _restore_optimizer(optimizer, load_file(folder / f"{name}.safetensors"))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise damaged(folder, error) from None
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RlverError(f"{folder}: this checkpoint belongs to another model ({reason}).") from None
        return state


def damaged(checkpoint: Path, error: object) -> RlverError:
    """The error for a checkpoint that cannot be read."""
    return RlverError(f"{checkpoint}: this checkpoint is damaged ({error}); delete it to continue from the one before.")


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a policy folder, from one file or several, into a model of the same architecture."""
    if has_adapters(model):
        return load_adapter(model, load_file(folder / ADAPTER_WEIGHTS))
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    _load_into(model, {name: tensor for file in names for name, tensor in load_file(folder / file).items()})


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return state | {"step": int(state["step"])}
    except (ValueError, KeyError, TypeError):
        raise OSError(f"{file.name} holds no step") from None


def _untied(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict in which no two tensors share memory, which safetensors does not allow."""
    pointers: set[int] = set()
    tensors = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in pointers:
            pointers.add(tensor.data_ptr())
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
