"""Checkpoints: everything that a run needs to go on as if it had never stopped, in safetensors and JSON.

Random numbers need no saving: whatever is drawn in a step is drawn from the run's seed and the number of the step.
So are the profiles of a step; and the learning rates follow from its number. What does have state is a small
dictionary in state.json: the best evaluation so far, the windows that watch for a collapse, the curriculum.
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
from rlver.inference.model_folder import ADAPTER_WEIGHTS, has_adapters, load_adapter
from rlver.policies.load import FOLDER_FILE
from rlver.policies.local import end_tokens
from rlver.train.models.critic import AdapterCritic, Critic
from rlver.train.runs.run_folder import remove, whole_folder


def save_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """Save a policy as a folder that `transformers` loads and samples from as we did; an older folder is replaced.

    `rlver.json` in it says what it was trained for.
    """
    with whole_folder(folder) as part:
        write_policy(part, model, tokenizer, facts)


def write_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """Write the files of a policy folder, one by one; see `save_policy`."""
    folder.mkdir(exist_ok=True)
    # Set first: a model whose own settings contradict each other would refuse to be saved.
    model.generation_config = generation(tokenizer, facts, end_tokens(model))
    model.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)  # an adapter does not bring it along
    tokenizer.save_pretrained(folder)
    (folder / FOLDER_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def generation(
    tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any], ends: Sequence[int] = ()
) -> GenerationConfig:
    """How to sample as in training: at its temperature from the whole distribution, up to a closing mark.

    Args:
        ends: ids at which the model ended a reply already; some have several.
    """
    stop = tokenizer.eos_token_id
    every = sorted({*ends, *([] if stop is None else [stop])})
    pad = tokenizer.pad_token_id
    temperature = facts.get("temperature", 1.0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **(sampling if temperature else {"do_sample": False}),
        max_new_tokens=facts.get("max_tokens", 256),
        eos_token_id=every[0] if len(every) == 1 else every,
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
        """The newest complete checkpoint after less than `step` steps."""
        return next((found for found in reversed(self.all()) if step_of(found) < step), None)

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
        state: Mapping[str, Any],
    ) -> Path:
        """Write what there is after `step` steps. It appears under its name only when it is whole.

        Raises:
            RlverError: it cannot be written, for example on a full disk; the checkpoints before it are kept.
        """
        target = self.of(step)
        with whole_folder(target) as part:
            write_policy(part / "policy", model, tokenizer, facts)
            if critic is not None:
                save_file(_untied(critic), part / "critic.safetensors")
            for name, optimizer in optimizers.items():
                save_file(_optimizer_tensors(optimizer), part / f"{name}.safetensors")
            (part / "state.json").write_text(json.dumps({"step": step, **state}) + "\n", encoding="utf-8")
        return target

    def prune(self, keep: int, recent: int = 0) -> None:
        """Delete all but the last `keep` checkpoints, the newest from before the last `recent` steps, and its heir.

        So there is always one from before them, if there ever was, and it is at most twice as old as it must be
        plus the steps between two checkpoints.
        """
        found = self.all()
        limit = step_of(found[-1]) - recent
        older = [path for path in found if step_of(path) <= limit]
        spared = {*found[-keep:], *older[-1:], *found[len(older) : len(older) + 1]} if recent else {*found[-keep:]}
        for path in found:
            if path not in spared:
                remove(path)

    def load(
        self,
        folder: Path,
        model: PreTrainedModel,
        critic: Critic | AdapterCritic | None,
        optimizers: Mapping[str, Optimizer],
    ) -> dict[str, Any]:
        """Restore a checkpoint into these objects and return its state, with the number of steps done as `step`.

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
    """What to say of a checkpoint that cannot be read as one."""
    return RlverError(f"{checkpoint}: this checkpoint is damaged ({error}); delete it to go on from the one before.")


def step_of(checkpoint: Path) -> int:
    """The steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a policy folder, in one file or in several, into a model of the same kind."""
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
