"""LoRA adapters (arXiv 2106.09685) of one frozen model: the policy's, the critic's, and that of the starting policy.

Only one is at work at a time, or none, which is the base. Their weights are float32 whatever the base is: they are
small, and what a step changes is too little for 16 bits.
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
from rlver.inference.model_folder import ADAPTER, need_peft
from rlver.train.settings import ModelSettings

CRITIC, START = "critic", "start"


def lora_config(settings: ModelSettings) -> Any:
    """The `peft` config that the settings ask for. Raises RlverError where `peft` is not installed."""
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
    """Add the policy's adapter, which changes nothing yet, and freeze the rest; `base` names the model's folder.

    Raises:
        RlverError: the model has no modules of the names that the config targets.
    """
    try:
        model.add_adapter(config, ADAPTER)
    except ValueError as error:
        raise RlverError(f"config: lora_targets: {str(error).splitlines()[0][:200]}") from None
    prepare(model, base)


def prepare(model: PreTrainedModel, base: str) -> None:
    """Make the policy's adapter of a model ready for training: float32, and all else frozen."""
    parameters = adapter_parameters(model, ADAPTER).values()
    for parameter in parameters:
        parameter.data = parameter.data.float()
    _learn(model, parameters)
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base, False
    config.target_modules = sorted(config.target_modules)  # a set has another order in every process


def copy_adapter(model: PreTrainedModel, name: str, *, trained: bool) -> None:
    """Add an adapter that begins as a copy of the policy's."""
    learning = _learning(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are several adapters is the idea
        model.add_adapter(copy.deepcopy(model.peft_config[ADAPTER]), name)
    source, added = adapter_parameters(model, ADAPTER), adapter_parameters(model, name)
    for key, parameter in added.items():
        parameter.data = source[key].data.clone()
    _learn(model, [*learning, *(added.values() if trained else ())])
    activate(model, ADAPTER)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its policy's adapter added to the weights, and no adapters any more."""
    layers = _layers(model)
    for name, layer in [(name, module) for name, module in model.named_modules() if module in layers]:
        layer.merge(adapter_names=[ADAPTER])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of an adapter, by names that are the same for all adapters of the model."""
    mark = f".{name}."
    return {
        key.replace(mark, "."): parameter
        for key, parameter in model.named_parameters()
        if mark in key and ".lora_" in key
    }


def changes_nothing(model: PreTrainedModel) -> bool:
    """Whether the policy's adapter is still as a fresh one is: the policy is its base."""
    return not any(p.any() for key, p in adapter_parameters(model, ADAPTER).items() if "lora_B" in key)


def active(model: nn.Module) -> str | None:
    """The adapter at work; None is the base."""
    layer = _layers(model)[0]
    return None if layer.disable_adapters else layer.active_adapters[0]


def activate(model: nn.Module, name: str | None) -> None:
    """Put an adapter to work, or with None the base alone."""
    if active(model) == name:
        return
    learning = _learning(model)
    for layer in _layers(model):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter([name])
    # `peft` freezes what is not at work, and a frozen parameter loses the gradient of a pass that is already done.
    _learn(model, learning)


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Put an adapter to work for a while."""
    before = active(model)
    activate(model, name)
    try:
        yield
    finally:
        activate(model, before)


def _learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _learn(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let these parameters learn and no others."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
