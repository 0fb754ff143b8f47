"""From a policy folder to a model in memory: a Hugging Face model, or a LoRA adapter that names the folder of its base.

An adapter stays an adapter: merged into weights of 16 bits, the small changes that training made would be rounded away.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlver.core.errors import RlverError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
"""Name of a policy's adapter inside its model, as `peft` has it."""
_WORTH_A_GPU = 100 * 2**20
"""Bytes of weights from which on a GPU pays; a smaller model waits for the GPU more than it computes."""


def load_model(
    folder: Path, device: str = "auto", dtype: torch.dtype | None = None, quantization: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a policy folder, with its adapter if it has one, and its tokenizer; ready to be sampled from.

    Args:
        device: where the model goes; `auto` is the GPU, if there is one and the model is large enough for it.
        dtype: of the weights; None keeps the one that they were saved in.
        quantization: a `transformers` quantization config.

    Raises:
        RlverError: there is no such folder, no model that can be loaded in it, or no such device.
    """
    base = base_folder(folder)
    place = pick_device(device, base)
    disable_progress_bar()  # loading takes no time worth a bar, and the bars would stand between our lines
    options: dict[str, Any] = {"quantization_config": quantization, "device_map": {"": place}} if quantization else {}
    if dtype is not None:
        options["dtype"] = dtype
    try:
        # Masks are given as tables of who sees whom; of the attention kernels, only PyTorch's own takes them.
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base, local_files_only=True, attn_implementation="sdpa", output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if base != folder:
            _attach(model, folder)
    except Exception as error:  # transformers raises many kinds; all mean that the folder is no usable model
        raise RlverError(f"{folder}: the model cannot be loaded ({str(error).splitlines()[0]}).") from error
    if not getattr(model, "is_quantized", False):
        _check_whole(model, loaded, base)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # PyTorch's own leaves the capping out
    if quantization is None:
        model.to(place)
    return model.eval(), tokenizer


def _check_whole(model: PreTrainedModel, loaded: dict[str, Any], folder: Path) -> None:
    """Check that the weights in a folder are those of the architecture: transformers makes up what is missing.

    Weights of parts that this class does not have (what sees images, for example) are let pass.
    """
    parts = {name for name, _ in model.named_modules()} - {"", model.base_model_prefix}
    strange = [key for key in loaded["unexpected_keys"] if any(key.startswith(f"{part}.") for part in parts)]
    for what, keys in (
        ("are missing", loaded["missing_keys"]),
        ("are of another shape", [key[0] for key in loaded["mismatched_keys"]]),
        ("have no place in it", strange),
    ):
        if keys:
            raise RlverError(
                f"{folder}: these are not the weights of the model that its config.json describes ({len(keys)} "
                f"{what}, for example {min(keys)})."
            )


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether anything was added to the model by `add_adapter`."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def base_folder(folder: Path) -> Path:
    """The folder that holds the whole model: the folder itself, or the base that its adapter names.

    Raises:
        RlverError: there is no such folder, neither model nor adapter in it, or no base where the adapter looks for it.
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
        named = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlverError(f"{file}: cannot be read as the config of an adapter ({error}).") from None
    base = Path(str(named))
    if not (base / "config.json").is_file():
        raise RlverError(
            f"{folder}: this adapter belongs to the model in {named}, which is not there; "
            f"put it there, or write its folder as base_model_name_or_path into {file}."
        )
    return base


def need_peft(reason: str) -> None:
    """Raises RlverError where `peft` is not installed; `reason` says what needs it."""
    if find_spec("peft") is None:
        raise RlverError(f"{reason}, which needs peft: pip install 'rlver[lora]'.")


def pick_device(name: str, folder: Path) -> torch.device:
    """The device of that name for a model in `folder`. Raises RlverError if this machine has no such device."""
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
    """Put the adapter of a folder on its base."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    model.add_adapter(LoraConfig.from_pretrained(folder), ADAPTER)
    load_adapter(model, load_file(folder / ADAPTER_WEIGHTS))
    model.requires_grad_(False)


def load_adapter(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Load the weights of a policy's adapter. Raises KeyError or RuntimeError if they are those of another."""
    from peft import set_peft_model_state_dict

    found = set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)
    missing = [name for name in found.missing_keys if f".{ADAPTER}." in name]
    if missing or found.unexpected_keys:
        raise KeyError(f"tensors of the adapter differ: {sorted([*missing, *found.unexpected_keys])[:3]}")
