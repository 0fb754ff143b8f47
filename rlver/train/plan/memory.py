"""The memory that a run will need, part by part, before a weight is loaded.

With P parameters of b bytes that learn (all, or those of an adapter), L layers, D dialogues a step:

weights        the bytes of all parameters; in four bits, linear layers take half a byte a weight and its scale
adapters       4 bytes for each of rank x (inputs + outputs) of every adapted layer
reference      as much as the weights in full training, nothing with adapters or where kl is 0
critic         PPO: a copy of the weights and a number a hidden unit, or one more adapter
gradients      P x b, of policy and critic
optimizer      8 bytes a parameter for AdamW's two moments, 4 more for a float32 master copy
KV cache       D x places x L x 2 x key-value heads x head size x b; in steps of 256
activations    counted: what a forward and backward pass over the largest micro-batch holds at its peak, run on
               tensors without memory with two layers and with three, and continued to L
logits         counted in the same way for two pieces of `logit_tokens`: where the output layer learns, the gradient of
               one is kept while the next is made

Weights, critic, gradients and optimizer stay. The rest comes and goes: sampling has the KV cache, evaluation an
offloaded reference, updates have activations and logits; the sum takes the largest of the three. Attention is counted
with kernels that keep no table of scores, as PyTorch has them on CPUs and GPUs.
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
from rlver.train.models import adapters
from rlver.train.models.loading import checkpoint_gradients, dtype_for, learning
from rlver.train.models.logits import logprobs_and_entropies, piece_size
from rlver.train.plan.live_bytes import LiveBytes
from rlver.train.plan.longest_dialogue import Longest

_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: four bits, a byte of scale for 64 of them, and four bytes for 256 scales."""
_CONTEXT, _FRAGMENTS = 6 * 10**8, 0.05
"""What a GPU's driver takes, and the share of memory that lies between tensors: rules of thumb, not measured here."""

# On fake tensors `transformers` cannot see that a mask is not needed and makes one; this attention never has its own.
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
    """Else in the CPU's memory."""


@dataclass(frozen=True)
class MemoryPlan:
    """What lies where, and when."""

    parts: list[Part]
    longest: Longest
    device: str
    """Type of the device that the plan is for."""
    dtype: str
    capacity: int | None
    """Bytes of the device; None if unknown."""
    advice: list[str]
    """Settings, as `--set` takes them, that together bring it down to `advised_peak`; none if the run fits."""
    advised_peak: int

    @property
    def peak(self) -> int:
        """Most bytes on the device at one time."""
        return _peak(self.parts)

    @property
    def host(self) -> int:
        """Bytes in the CPU's memory of what was moved there."""
        return sum(part.bytes for part in self.parts if not part.on_device)

    @property
    def fits(self) -> bool | None:
        """Whether the device has room; None if its size is unknown."""
        return None if self.capacity is None else self.peak <= self.capacity

    def record(self) -> dict[str, Any]:
        """The plan as JSON has it."""
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


def plan(config: TrainConfig, shape: PreTrainedConfig, longest: Longest, device: torch.device) -> MemoryPlan:
    """The plan of a run for a model of that shape.

    Args:
        shape: the model's config.json.
        device: where the run will be, which need not be there.

    Raises:
        RlverError: `lora` is set and `peft` is not installed, no module has a name that is to be adapted, or the
            architecture is none that we know the memory of.
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
    advised = _peak(parts)
    if capacity and advised > capacity:
        advice, advised = _advice(config, shape, longest, dtype, device, capacity)
    return MemoryPlan(parts, longest, device.type, str(dtype).removeprefix("torch."), capacity, advice, advised)


def kv_slots(longest: Longest) -> int:
    """Places a row that the sampler's cache has made when the longest dialogue is over."""
    return rounded(longest.context + 1)


def _parts(
    config: TrainConfig, shape: PreTrainedConfig, longest: Longest, dtype: torch.dtype, device: torch.device
) -> list[Part]:
    model = _on_meta(config, shape, dtype)
    check_length(model, longest.sample, learned_positions(model))
    learned = learning(model)
    weights = _weight_bytes(config, model)
    adapter = _size(learned) if config.lora else 0
    critic = config.algo == "ppo"
    head = 4 * (model.config.hidden_size + 1)
    # A separate output layer is part of the critic's copy, but it never learns.
    taught = learned if config.lora else list(model.get_decoder().parameters())
    all_learned = [*learned, *(taught if critic else [])]
    # The critic's head is float32: with its gradient and its state, four times its size.
    state = sum((12 if config.offload_optimizer or p.dtype != torch.float32 else 8) * p.numel() for p in all_learned)
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
        Part("gradients", _size(all_learned) + (head if critic else 0)),
        Part("optimizer state", state + 2 * head * critic, on_device=not config.offload_optimizer),
        Part("KV cache", min(config.batch, config.slots or config.batch) * kv_slots(longest) * per_token, "sampling"),
        Part("reading the openings", _reading(config, shape, dtype, longest), "sampling"),
        Part("activations", _activations(config, shape, dtype, rows, length), "update"),
        Part("logits", _logits(config, shape, dtype, min(2 * piece, rows * length), piece), "update"),
    ]
    if config.offload_reference and reference:
        parts.append(Part("reference, at work", reference, "evaluation"))
        parts.append(Part("reference, waiting", reference, on_device=False))
    if config.quantize == "4bit":
        largest = max(weight.numel() for weight in _packed(model))
        parts.append(Part("a layer, unpacked", largest * dtype.itemsize))
    if device.type == "cuda":
        parts.append(Part("driver, fragments", int(_CONTEXT + _FRAGMENTS * _peak(parts))))
    return [part for part in parts if part.bytes]


def _peak(parts: Iterable[Part]) -> int:
    by_time = dict.fromkeys(("always", "sampling", "evaluation", "update"), 0)
    for part in parts:
        if part.on_device:
            by_time[part.when] += part.bytes
    return by_time.pop("always") + max(by_time.values())


def _advice(
    config: TrainConfig,
    shape: PreTrainedConfig,
    longest: Longest,
    dtype: torch.dtype,
    device: torch.device,
    capacity: int,
) -> tuple[list[str], int]:
    """Settings that together make the run fit, those first that change nothing of what is learned, and their peak."""
    changes: list[dict[str, Any]] = [
        {"gradient_checkpointing": True},
        {"offload_reference": True},
        {"micro_tokens": min(config.micro_tokens, longest.sample)},
        {"offload_optimizer": True},
    ]
    if config.lora or find_spec("peft"):  # adapters are counted with it
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


def _largest_batch(config: TrainConfig, longest: Longest) -> tuple[int, int]:
    """Rows and tokens of the largest micro-batch: as many of the longest dialogues as go in, filled up."""
    rows = max(1, config.micro_tokens // longest.sample)
    return rows, max(longest.sample, config.micro_tokens // rows)


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _weight_bytes(config: TrainConfig, model: PreTrainedModel) -> int:
    own = {id(p) for p in learning(model)} if config.lora else set()
    base = [p for p in model.parameters() if id(p) not in own]
    if config.quantize == "none":
        return _size(base)
    packed = {id(weight) for weight in _packed(model)}
    return int(sum(p.numel() * _NF4 if id(p) in packed else p.nbytes for p in base))


def _packed(model: PreTrainedModel) -> list[Tensor]:
    """The weights that four bits are for: those of linear layers, but neither adapters nor the output layer."""
    adapter, output = {id(p) for p in learning(model)}, model.get_output_embeddings()
    linear = (m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not output)
    return [weight for weight in linear if id(weight) not in adapter]


def _on_meta(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, layers: int | None = None) -> Any:
    """The model as it will be trained, without memory."""
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


def _faked(model: PreTrainedModel) -> list[Tensor]:
    """Give a model of the meta device parameters, gradients and buffers that claim to lie on the CPU."""
    fakes: dict[int, nn.Parameter] = {}
    held: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = fakes.setdefault(
                    id(parameter), nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
                )
                module._parameters[name] = fake
                if fake.requires_grad and fake.grad is None:
                    fake.grad = _empty(parameter)
                    held.append(fake.grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer)
                held.append(module._buffers[name])
    return [*held, *fakes.values()]


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu")


_PEAKS: dict[tuple[Any, ...], int] = {}
"""What was counted before: advice asks for the same passes again and again."""


def _decoder_peak(
    config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, layers: int, size: tuple[int, int], train: bool
) -> int:
    """Most bytes that a forward pass, and with `train` a backward pass, over (rows, tokens) holds beside weights."""
    # Padding and thoughts need a mask, and so does reading into a cache.
    masked, forgetful = config.think or not train or size[0] > 1, config.gradient_checkpointing and train
    adapted = (config.lora, config.lora_dropout, str(config.lora_targets))
    key = (shape.to_json_string(), adapted, forgetful, masked, dtype, layers, size, train)
    if key not in _PEAKS:
        model = _on_meta(config, shape, dtype, layers)
        if forgetful:
            checkpoint_gradients(model)
        _PEAKS[key] = _count(model.train(train), size, masked)
    return _PEAKS[key]


def _count(model: PreTrainedModel, size: tuple[int, int], masked: bool) -> int:
    with FakeTensorMode():
        held = _faked(model)
        ids, positions = (torch.empty(size, dtype=torch.long) for _ in range(2))
        mask = torch.empty((size[0], 1, size[1], size[1]), dtype=torch.bool) if masked else None
        around = [] if mask is None else [mask]
        with LiveBytes([*held, *around]) as live, torch.set_grad_enabled(model.training):
            output = model.get_decoder()(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
            ).last_hidden_state
            if model.training:
                output.backward(torch.empty_like(output))
    return live.peak + _size(around)


def _activations(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, rows: int, length: int) -> int:
    two, three = (_decoder_peak(config, shape, dtype, layers, (rows, length), True) for layers in (2, 3))
    return two + (shape.get_text_config().num_hidden_layers - 2) * (three - two)


def _reading(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, longest: Longest) -> int:
    """The widest forward pass of sampling: all dialogues read system prompt and first utterance at once."""
    return _decoder_peak(config, shape, dtype, 2, (config.batch, longest.opening), False)


def _logits(config: TrainConfig, shape: PreTrainedConfig, dtype: torch.dtype, tokens: int, piece: int) -> int:
    model = _on_meta(config, shape, dtype, 1)
    with FakeTensorMode():
        held = _faked(model)
        hidden = torch.empty((tokens, model.config.get_text_config().hidden_size), dtype=dtype, requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.long)
        with LiveBytes(held) as live:
            logprobs, spread = logprobs_and_entropies(model, hidden, targets, 0.5, piece)
            (logprobs + spread).sum().backward()
    return live.peak
