"""Loading a model for training: its device, the type of its weights, and which of them are trained."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.inference.model_folder import ADAPTER, base_folder, has_adapters, load_model, pick_device
from rlver.train.config import ModelSettings
from rlver.train.models import adapters

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_for_training(folder: Path, settings: ModelSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a policy folder, loaded as the settings say, and its tokenizer.

    If the folder holds an adapter and `lora` is its rank, that adapter is trained further. With `lora=0` it is merged
    into the weights, all of which are trained.

    Raises:
        RlverError: the model cannot be loaded, the device does not exist, a package is missing, or the adapters do not
            fit.
    """
    base = base_folder(folder)
    device = pick_device(settings.device, base)
    dtype = dtype_for(settings, device)
    quantization = four_bit(device, dtype) if settings.quantize == "4bit" else None
    model, tokenizer = load_model(folder, str(device), dtype, quantization)
    if not settings.lora:
        if has_adapters(model):
            model = adapters.merge(model)
        model.requires_grad_(True)
    elif has_adapters(model):
        rank = model.peft_config[ADAPTER].r
        if rank != settings.lora:
            raise RlverError(f"{folder}: holds an adapter of rank {rank}, not {settings.lora}; set lora={rank}.")
        adapters.prepare(model, str(base.resolve()))
    else:
        adapters.add_adapter(model, adapters.lora_config(settings), str(base.resolve()))
    if settings.gradient_checkpointing:
        checkpoint_gradients(model)
    return model, tokenizer


def dtype_for(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """The type of the weights on a device."""
    name = settings.dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return _DTYPES[name]


def four_bit(device: torch.device, dtype: torch.dtype) -> Any:
    """The config that loads a base in four bits. Raises RlverError if the device or a package does not allow it."""
    if device.type != "cuda":
        raise RlverError(
            f"quantize=4bit needs an NVIDIA or AMD GPU, and the device is {device.type}; set quantize=none."
        )
    if find_spec("bitsandbytes") is None:
        raise RlverError("quantize=4bit needs bitsandbytes: pip install 'rlver[4bit]'.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the policy that are trained: those of its adapter, or all."""
    if isinstance(model, PreTrainedModel) and has_adapters(model):
        return list(adapters.adapter_parameters(model, ADAPTER).values())
    return list(model.parameters())


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Let each layer keep only its input and recompute the rest, with the same adapter, in the backward pass."""

    def contexts() -> tuple[Any, Any]:
        """Contexts of the forward pass and of the recomputation, during which another adapter may be active."""
        if not has_adapters(model):
            return nullcontext(), nullcontext()
        return nullcontext(), adapters.using(model, adapters.active(model))

    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    model.disable_input_require_grads()  # only the reentrant kind of checkpointing needs them
