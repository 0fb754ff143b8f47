"""LoRA adapters (arXiv 2106.09685) of one frozen model: the policy's, the critic's, and a copy of the initial policy's.

At any time one adapter is active, or none, which gives the base model. Adapter weights are float32 whatever the base
is: they are small, and the change of one update is too small for 16 bits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlver.core.errors import RlverError
from rlver.inference.model_folder import ADAPTER, add_lora_layers, need_peft
from rlver.train.config import ModelSettings

CRITIC, START = "critic", "start"
"""Names of the critic's adapter and of the copy of the initial policy's adapter."""


def lora_config(settings: ModelSettings) -> Any:
    """The `peft` config for these settings. Raises RlverError if `peft` is not installed."""
    need_peft(f"lora={settings.lora} trains adapters")
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets,
        task_type="CAUSAL_LM",
    )


def add_adapter(model: PreTrainedModel, config: Any, base: str) -> None:
    """Add the policy's adapter, which does not change the output yet, and freeze everything else.

    Args:
        base: folder of the base model, recorded in the adapter's config.

    Raises:
        RlverError: the model has no modules with the names that the config targets.
    """
    try:
        add_lora_layers(model, config, ADAPTER)
    except ValueError as error:
        raise RlverError(f"lora_targets: {str(error).splitlines()[0][:200]}") from None
    prepare(model, base)


def prepare(model: PreTrainedModel, base: str) -> None:
    """Prepare the policy's adapter for training: convert it to float32 and freeze everything else."""
    parameters = adapter_parameters(model, ADAPTER).values()
    for parameter in parameters:
        parameter.data = parameter.data.float()
    _train_only(model, parameters)
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base, False
    config.target_modules = sorted(config.target_modules)  # a set has a different order in every process


def copy_adapter(model: PreTrainedModel, name: str, *, trained: bool) -> None:
    """Add an adapter that starts as a copy of the policy's."""
    trainable = _parameters_with_gradient(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `peft` warns about several adapters, which are intended here
        add_lora_layers(model, copy.deepcopy(model.peft_config[ADAPTER]), name)
    source, added = adapter_parameters(model, ADAPTER), adapter_parameters(model, name)
    for key, parameter in added.items():
        parameter.data = source[key].data.clone()
    _train_only(model, [*trainable, *(added.values() if trained else ())])
    activate(model, ADAPTER)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its policy's adapter merged into the weights, and without adapters."""
    layers = _layers(model)
    for name, layer in [(name, module) for name, module in model.named_modules() if module in layers]:
        layer.merge(adapter_names=[ADAPTER])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of an adapter, under keys that are the same for all adapters of the model."""
    infix = f".{name}."
    return {
        key.replace(infix, "."): parameter
        for key, parameter in model.named_parameters()
        if infix in key and ".lora_" in key
    }


def changes_nothing(model: PreTrainedModel) -> bool:
    """Whether the policy's adapter is still as initialised, so that the policy equals its base."""
    return not any(p.any() for key, p in adapter_parameters(model, ADAPTER).items() if "lora_B" in key)


def active(model: nn.Module) -> str | None:
    """The name of the active adapter; None is the base model."""
    layer = _layers(model)[0]
    return None if layer.disable_adapters else layer.active_adapters[0]


def activate(model: nn.Module, name: str | None) -> None:
    """Activate an adapter, or with None the base model alone."""
    if active(model) == name:
        return
    trainable = _parameters_with_gradient(model)
    for layer in _layers(model):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter([name])
    # `peft` freezes inactive adapters, but a forward pass that is already done may still need their gradients.
    _train_only(model, trainable)


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Activate an adapter inside a `with` block."""
    before = active(model)
    activate(model, name)
    try:
        yield
    finally:
        activate(model, before)


def _parameters_with_gradient(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _train_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze all parameters but these."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
