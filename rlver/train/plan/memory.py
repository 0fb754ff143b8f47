"""The memory that a run will need, part by part, planned before any weights are loaded.

With P trained parameters of b bytes (all parameters, or those of an adapter), L layers, and D dialogues per step:

weights        the bytes of all parameters; in four bits, linear layers take half a byte per weight, and their scales
adapters       4 bytes for each of rank x (inputs + outputs) of every adapted layer
reference      as much as the weights in full training, nothing with adapters or if kl is 0
critic         PPO only: a copy of the weights and one number per hidden unit, or one more adapter
gradients      P x b, for policy and critic
optimizer      8 bytes per parameter for AdamW's two moments, 4 more for a float32 master copy
KV cache       D x slots x L x 2 x key-value heads x head size x b; slots are allocated in steps of 256
activations    measured: the peak of a forward and backward pass over the largest micro-batch, run on tensors without
               memory with two and with three layers, and extrapolated to L
logits         measured in the same way for two pieces of `logit_tokens`: if the output layer is trained, the gradient
               of one piece exists while the next is computed

Weights, critic, gradients and optimizer state are always there. The rest is not there at the same time: sampling has
the KV cache, the evaluation of log-probabilities an offloaded reference, and updates have activations and logits. The
plan counts the largest of the three. Attention is measured with kernels that store no table of scores, as PyTorch has
them on CPUs and GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlver.core.errors import RlverError
from rlver.inference.decoder import check_length, learned_positions
from rlver.inference.kv_cache import rounded
from rlver.inference.model_folder import ADAPTER
from rlver.train.config import TrainConfig
from rlver.train.forward import logprobs_and_entropies, piece_size
from rlver.train.models import adapters
from rlver.train.models.loading import checkpoint_gradients, dtype_for, trainable_parameters
from rlver.train.plan.live_bytes import LiveBytes
from rlver.train.plan.longest_dialogue import LongestDialogue

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: four bits, one byte of scale for 64 weights, and four bytes for 256 scales."""
_DRIVER_BYTES, _FRAGMENTATION = 6 * 10**8, 0.05
"""What a GPU's driver takes, and the share of memory lost between tensors. Rules of thumb, not measured here."""

# On fake tensors `transformers` cannot see that a mask is not needed and creates one. This attention never has its own.
_CAUSAL = "rlver_causal"
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
AttentionMaskInterface.register(_CAUSAL, lambda *_, **__: None)

When = Literal["always", "sampling", "evaluation", "update"]


@dataclass(frozen=True)
class Part:
    """A part of the plan."""

    name: str
    bytes: int
    when: When = "always"
    on_device: bool = True
    """If not, it lies in CPU memory."""


@dataclass(frozen=True)
class MemoryPlan:
    """What lies where, and when."""

    parts: list[Part]
    longest: LongestDialogue
    device: str
    """Type of the device that the plan is for."""
    dtype: str
    capacity: int | None
    """Bytes of the device; None if unknown."""
    advice: list[str]
    """Settings, as `--set` takes them, that together reduce the peak to `advised_peak`; empty if the run fits."""
    advised_peak: int

    @property
    def peak(self) -> int:
        """Largest number of bytes on the device at one time."""
        return _peak(self.parts)

    @property
    def host(self) -> int:
        """Bytes in CPU memory of what was offloaded."""
        return sum(part.bytes for part in self.parts if not part.on_device)

    @property
    def fits(self) -> bool | None:
        """Whether the device has enough memory; None if its size is unknown."""
        return None if self.capacity is None else self.peak <= self.capacity

    def record(self) -> dict[str, Any]:
        """The plan as JSON values."""
        lengths = asdict(self.longest) | {
            name: getattr(self.longest, name) for name in ("context", "sample", "trained")
        }
        return {
            "parts": [asdict(part) for part in self.parts],
            "peak_bytes": self.peak,
            "host_bytes": self.host,
            "device": self.device,
            "dtype": self.dtype,
            "capacity_bytes": self.capacity,
            "fits": self.fits,
            "longest": lengths,
            "advice": self.advice,
            "advised_peak_bytes": self.advised_peak,
        }


def plan_memory(
    config: TrainConfig, shape: PreTrainedConfig, longest: LongestDialogue, device: torch.device
) -> MemoryPlan:
    """The memory plan of a run.

    Args:
        shape: the model's config.json.
        device: where the run will be; it need not exist on this machine.

    Raises:
        RlverError: `lora` is set and `peft` is not installed, no module has a name that is to be adapted, or the
            memory of this architecture cannot be planned.
    """
    dtype = dtype_for(config, device)
    capacity = _capacity(config, device)
    try:
        parts = _parts(config, shape, longest, dtype, device)
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RlverError(
            f"the memory of a model of architecture {shape.model_type} cannot be planned ({reason})."
        ) from error
    advice: list[str] = []
    advised_peak = _peak(parts)
    if capacity and advised_peak > capacity:
        advice, advised_peak = _advise(config, shape, longest, dtype, device, capacity)
    return MemoryPlan(parts, longest, device.type, str(dtype).removeprefix("torch."), capacity, advice, advised_peak)


def kv_slots(longest: LongestDialogue) -> int:
    """Slots per row that the sampler's cache has allocated at the end of the longest dialogue."""
    return rounded(longest.context + 1)


def _parts(
    config: TrainConfig, shape: PreTrainedConfig, longest: LongestDialogue, dtype: torch.dtype, device: torch.device
) -> list[Part]:
    model = _on_meta(config, shape, dtype)
    check_length(model, longest.sample, learned_positions(model))
    trained = trainable_parameters(model)
    weights = _weight_bytes(config, model)
    adapter = _size(trained) if config.lora else 0
    critic = config.algo == "ppo"
    head = 4 * (model.config.hidden_size + 1)
    # A separate output layer is part of the critic's copy, but the critic never trains it.
    trained_by_critic = trained if config.lora else list(model.get_decoder().parameters())
    all_trained = [*trained, *(trained_by_critic if critic else [])]
    # The critic's head is float32. With its gradient and its optimizer state it takes four times its size.
    state = sum((12 if config.offload_optimizer or p.dtype != torch.float32 else 8) * p.numel() for p in all_trained)
    reference = weights if config.kl and not config.lora else 0
    text = model.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * size * dtype.itemsize
    rows, length = _largest_batch(config, longest)
    piece = piece_size(text.vocab_size, config.logit_tokens)
    parts = [
        Part("weights", weights),
        Part("adapters", adapter),
        Part("reference", 0 if config.offload_reference else reference),
        Part("critic", (adapter or _size(model.parameters())) + head if critic else 0),
        Part("gradients", _size(all_trained) + (head if critic else 0)),
        Part("optimizer state", state + 2 * head * critic, on_device=not config.offload_optimizer),
        Part("KV cache", min(config.batch, config.slots or config.batch) * kv_slots(longest) * per_token, "sampling"),
        Part("prefill", _prefill(config, shape, dtype, longest), "sampling"),
        Part("activations", _activations(config, shape, dtype, rows, length), "update"),
        Part("logits", _logits(config, shape, dtype, min(2 * piece, rows * length), piece), "update"),
    ]
    if config.offload_reference and reference:
        parts.append(Part("reference on device", reference, "evaluation"))
        parts.append(Part("reference, offloaded", reference, on_device=False))
    if config.quantize == "4bit":
        largest = max(weight.numel() for weight in _quantized(model))
        parts.append(Part("largest layer, dequantized", largest * dtype.itemsize))
    if device.type == "cuda":
        parts.append(Part("driver, fragmentation", int(_DRIVER_BYTES + _FRAGMENTATION * _peak(parts))))
    return [part for part in parts if part.bytes]


def _peak(parts: Iterable[Part]) -> int:
    by_time = dict.fromkeys(("always", "sampling", "evaluation", "update"), 0)
    for part in parts:
        if part.on_device:
            by_time[part.when] += part.bytes
    return by_time.pop("always") + max(by_time.values())


def _advise(
    config: TrainConfig,
    shape: PreTrainedConfig,
    longest: LongestDialogue,
    dtype: torch.dtype,
    device: torch.device,
    capacity: int,
) -> tuple[list[str], int]:
    """Settings that together make the run fit, and its peak then. Those that do not change the results come first."""
    changes: list[dict[str, Any]] = [
        {"gradient_checkpointing": True},
        {"offload_reference": True},
        {"micro_tokens": min(config.micro_tokens, longest.sample)},
        {"offload_optimizer": True},
    ]
    if config.lora or find_spec("peft"):  # planning adapters needs `peft`
        changes += [{"lora": config.lora or 32}, {"lora": config.lora or 32, "quantize": "4bit"}]
    sizes = (config.batch // n // config.rollouts * config.rollouts for n in (2, 4, 8, 16))
    changes += [{"batch": size} for size in sizes if size]
    best = _peak(_parts(config, shape, longest, dtype, device))
    chosen: dict[str, Any] = {}
    for change in changes:
        changed = config.model_copy(update=chosen | change)
        peak = _peak(_parts(changed, shape, longest, dtype, device))
        if peak < 0.98 * best:
            chosen |= change
            best = peak
        if best <= capacity:
            break
    return [f"{key}={str(value).lower()}" for key, value in chosen.items()], best


def _capacity(config: TrainConfig, device: torch.device) -> int | None:
    if config.device_memory_gb is not None:
        return int(config.device_memory_gb * 10**9)
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    return None


def _largest_batch(config: TrainConfig, longest: LongestDialogue) -> tuple[int, int]:
    """Rows and tokens per row of the largest micro-batch: as many of the longest dialogues as fit, filled up."""
    rows = max(1, config.micro_tokens // longest.sample)
    return rows, max(longest.sample, config.micro_tokens // rows)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _weight_bytes(config: TrainConfig, model: PreTrainedModel) -> int:
    """The bytes of all parameters but those of adapters."""
    adapter = {id(p) for p in trainable_parameters(model)} if config.lora else set()
    base = [p for p in model.parameters() if id(p) not in adapter]
    if config.quantize == "none":
        return _size(base)
    quantized = {id(weight) for weight in _quantized(model)}
    return int(sum(p.numel() * _NF4_BYTES if id(p) in quantized else p.nbytes for p in base))


def _quantized(model: PreTrainedModel) -> list[Tensor]:
    """The weights that are stored in four bits: those of linear layers, but neither adapters nor the output layer."""
    adapter, output = {id(p) for p in trainable_parameters(model)}, model.get_output_embeddings()
    linear = (m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not output)
    return [weight for weight in linear if id(weight) not in adapter]


def _on_meta(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, layers: int | None = None) -> Any:
    """The model as it will be trained, on the meta device, which stores no numbers."""
    shape = copy.deepcopy(shape)
    text = shape.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = (text.layer_types * layers)[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=_CAUSAL)
        if config.lora:
            adapters.add_adapter(model, adapters.lora_config(config), "")
            assert adapters.active(model) == ADAPTER
    return model


def _make_fake(model: PreTrainedModel) -> list[Tensor]:
    """Replace the parameters, gradients and buffers of a model by fake tensors on the CPU. Returns all of them."""
    fakes: dict[int, nn.Parameter] = {}
    others: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = fakes.setdefault(
                    id(parameter), nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
                )
                module._parameters[name] = fake
                if fake.requires_grad and fake.grad is None:
                    fake.grad = _empty(parameter)
                    others.append(fake.grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer)
                others.append(module._buffers[name])
    return [*others, *fakes.values()]


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu")


_PEAKS: dict[tuple[Any, ...], int] = {}
"""Peaks that were measured before: advice needs the same passes again and again."""


def _decoder_peak(
    config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, layers: int, size: tuple[int, int], train: bool
) -> int:
    """Peak bytes besides weights of a forward pass, and with `train` a backward pass, over `size` (rows, tokens)."""
    # Padding and thinking need a mask, and so does reading into a cache.
    masked = config.think or not train or size[0] > 1
    checkpointed = config.gradient_checkpointing and train
    adapted = (config.lora, config.lora_dropout, str(config.lora_targets))
    key = (shape.to_json_string(), adapted, checkpointed, masked, dtype, layers, size, train)
    if key not in _PEAKS:
        model = _on_meta(config, shape, dtype, layers)
        if checkpointed:
            checkpoint_gradients(model)
        _PEAKS[key] = _measure(model.train(train), size, masked)
    return _PEAKS[key]


def _measure(model: PreTrainedModel, size: tuple[int, int], masked: bool) -> int:
    with FakeTensorMode():
        weights = _make_fake(model)
        ids, positions = (torch.empty(size, dtype=torch.long) for _ in range(2))
        mask = torch.empty((size[0], 1, size[1], size[1]), dtype=torch.bool) if masked else None
        masks = [] if mask is None else [mask]
        with LiveBytes([*weights, *masks]) as live, torch.set_grad_enabled(model.training):
            output = model.get_decoder()(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
            ).last_hidden_state
            if model.training:
                output.backward(torch.empty_like(output))
    return live.peak + _size(masks)


def _activations(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, rows: int, length: int) -> int:
    two, three = (_decoder_peak(config, shape, dtype, layers, (rows, length), True) for layers in (2, 3))
    return two + (shape.get_text_config().num_hidden_layers - 2) * (three - two)


def _prefill(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, longest: LongestDialogue) -> int:
    """The largest forward pass of sampling: system prompt and first utterance of all dialogues at once."""
    return _decoder_peak(config, shape, dtype, 2, (config.batch, longest.opening), False)


def _logits(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, tokens: int, piece: int) -> int:
    model = _on_meta(config, shape, dtype, 1)
    with FakeTensorMode():
        weights = _make_fake(model)
        hidden = torch.empty((tokens, model.config.get_text_config().hidden_size), dtype=dtype, requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.long)
        with LiveBytes(weights) as live:
            logprobs, entropies = logprobs_and_entropies(model, hidden, targets, 0.5, piece)
            (logprobs + entropies).sum().backward()
    return live.peak
