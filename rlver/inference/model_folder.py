"""Loads the model of a policy folder: a Hugging Face model, or a LoRA adapter that names the folder of its base.

An adapter is not merged into its base, because 16-bit weights would round the small changes of training away.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlver.core.errors import RlverError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
"""Name of the policy's adapter inside its model, which is the default of `peft`."""
_WORTH_A_GPU = 100 * 2**20
"""Smallest size of weights, in bytes, for which a GPU is faster. A smaller model would mostly wait for the GPU."""


def load_model(
    folder: Path, device: str = "auto", dtype: torch.dtype | None = None, quantization: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model of a policy folder, with its adapter if it has one, and its tokenizer.

    The model is in evaluation mode.

    Args:
        device: `auto` takes the GPU if there is one and the model is large enough to gain from it.
        dtype: type of the weights; None keeps the type that they were saved in.
        quantization: a `transformers` quantization config.

    Raises:
        RlverError: the folder or the device does not exist, or the folder holds no model that can be loaded.
    """
    base = base_folder(folder)
    target = pick_device(device, base)
    disable_progress_bar()  # loading is quick, and a bar would break up the lines of the log
    options: dict[str, Any] = {"quantization_config": quantization, "device_map": {"": target}} if quantization else {}
    if dtype is not None:
        options["dtype"] = dtype
    try:
        # Of the attention kernels, only PyTorch's own takes masks that say for every pair whether it is visible. But it
        # does not cap scores.
        shape = AutoConfig.from_pretrained(base, local_files_only=True)
        attention = "eager" if getattr(shape, "attn_logit_softcapping", None) else "sdpa"
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base, local_files_only=True, attn_implementation=attention, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if base != folder:
            _attach(model, folder)
    except Exception as error:  # transformers raises many kinds; each means that the folder cannot be used
        raise RlverError(f"{folder}: the model cannot be loaded ({str(error).splitlines()[0]}).") from error
    if not getattr(model, "is_quantized", False):
        _check_whole(model, loaded, base)
    if quantization is None:
        model.to(target)
    return model.eval(), tokenizer


def _check_whole(model: PreTrainedModel, loaded: dict[str, Any], folder: Path) -> None:
    """Check that the weights in a folder fit the architecture, because transformers initialises missing ones at random.

    Weights of parts that this class lacks, such as an image encoder, are ignored.
    """
    parts = {name for name, _ in model.named_modules()} - {"", model.base_model_prefix}
    surplus = [key for key in loaded["unexpected_keys"] if any(key.startswith(f"{part}.") for part in parts)]
    for problem, keys in (
        ("are missing", loaded["missing_keys"]),
        ("are of another shape", [key[0] for key in loaded["mismatched_keys"]]),
        ("have no place in it", surplus),
    ):
        if keys:
            raise RlverError(
                f"{folder}: these are not the weights of the model that its config.json describes ({len(keys)} "
                f"{problem}, for example {min(keys)})."
            )


def add_lora_layers(model: PreTrainedModel, config: Any, name: str) -> None:
    """Add an adapter to a model and activate it.

    This is what `PreTrainedModel.add_adapter` does, without its check of the version of `peft`: some versions of
    `transformers` ask for a version of `peft` that is newer than any released one.

    Args:
        config: a `peft` config. The name of the model is written into it.

    Raises:
        ValueError: the model has no modules with the names that the config targets.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config.base_model_name_or_path = model.name_or_path
    inject_adapter_in_model(config, model, name)
    model._hf_peft_config_loaded = True
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(name)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Save the policy's adapter as `peft` and `PreTrainedModel.save_pretrained` do: its weights and its config."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.peft_config[ADAPTER].save_pretrained(folder)


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether `add_lora_layers` has added an adapter to the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def base_folder(folder: Path) -> Path:
    """The folder of the whole model: the folder itself, or the base that its adapter names.

    Raises:
        RlverError: the folder or the base does not exist, or the folder holds neither a model nor an adapter.
    """
    if not folder.is_dir():
        raise RlverError(f"{folder}: there is no such folder; a policy folder holds config.json and model.safetensors.")
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        if not (folder / "config.json").is_file():
            raise RlverError(f"{folder}: this folder holds no model (config.json is missing).")
        return folder
    need_peft(f"{folder} holds a LoRA adapter")
    try:
        base_name = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlverError(f"{file}: cannot be read as an adapter config ({error}).") from None
    base = Path(str(base_name))
    if not (base / "config.json").is_file():
        raise RlverError(
            f"{folder}: this adapter belongs to the model in {base_name}, which does not exist; "
            f"put the model there, or write its folder as base_model_name_or_path into {file}."
        )
    return base


def need_peft(reason: str) -> None:
    """Check that `peft` is installed.

    Args:
        reason: beginning of the error message, which says what needs `peft`.

    Raises:
        RlverError: it is not installed.
    """
    if find_spec("peft") is None:
        raise RlverError(f"{reason}, which needs peft: pip install 'rlver[lora]'.")


def pick_device(name: str, folder: Path) -> torch.device:
    """The device called `name` for the model in `folder`.

    Raises:
        RlverError: this machine has no such device.
    """
    if name == "auto":
        large = sum(file.stat().st_size for file in folder.glob("*.safetensors")) >= _WORTH_A_GPU
        name = "cuda" if large and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RlverError(f"device {name!r} cannot be used here ({reason}); choose auto, cpu, cuda or mps.") from None
    return device


def _attach(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter in a folder to its base."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    add_lora_layers(model, LoraConfig.from_pretrained(folder), ADAPTER)
    load_adapter(model, load_file(folder / ADAPTER_WEIGHTS))
    model.requires_grad_(False)


def load_adapter(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Load the weights of a policy's adapter.

    Raises:
        KeyError, RuntimeError: the weights belong to an adapter of another shape.
    """
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)
    missing = [name for name in result.missing_keys if f".{ADAPTER}." in name]
    if missing or result.unexpected_keys:
        raise KeyError(f"the tensors of the adapter differ: {sorted([*missing, *result.unexpected_keys])[:3]}")
