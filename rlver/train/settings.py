"""The settings of a training run, section by section. `TrainConfig` joins them to one flat list of keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from rlver.agents.base import UserType
from rlver.core.profile import Language
from rlver.train.credit import Credit


class Settings(BaseModel):
    """A section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Settings):
    """What is trained, and how it lies in memory."""

    policy: str = "tiny"
    """`tiny` (pretrained on the spot, then kept), or a folder with a Hugging Face causal language model or adapter."""
    threads: int = Field(1, ge=1)
    """CPU threads of torch. A small model gains little by more, and results are identical only for the same number."""
    device: str = "auto"
    """`auto` is the GPU if there is one and the model is large enough for it, else the CPU; or `cpu`, `cuda`, `mps`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and computation; `auto` is float32 on a CPU and bfloat16 on a GPU. What learns in bfloat16 is kept in
    float32 beside it, by the optimizer; log-probs are always float32."""
    lora: int = Field(0, ge=0)
    """Rank of LoRA adapters; 0 trains all weights. With adapters the base is frozen, and shared by policy, reference
    and critic. Needs `peft`. Learning rates are about ten times those of full training."""
    lora_alpha: int = Field(32, ge=1)
    """What an adapter adds is multiplied by lora_alpha / lora."""
    lora_targets: str | list[str] = "all-linear"
    """Which modules get an adapter: all linear ones but the output layer, or a list like [q_proj, v_proj]."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters in updates. Sampling has none, so it sets sampler and trainer apart."""
    quantize: Literal["none", "4bit"] = "none"
    """`4bit` loads the base as NF4 with double quantization (QLoRA, arXiv 2305.14314). Needs LoRA, a GPU and
    `bitsandbytes`."""
    attention: str = "sdpa"
    """PyTorch's attention is the only one possible: who sees whom is given as a table, which flash-attention 2 cannot
    take. Where plain causal order says the same (no thinking), PyTorch runs its own flash kernel."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer and compute the rest again in the backward pass: a third more computation,
    a fraction of the activations, the same gradients."""
    micro_tokens: int = Field(4096, ge=1)
    """Most tokens of one forward-backward pass. A dialogue that is longer goes alone."""
    logit_tokens: int = Field(0, ge=0)
    """Trained tokens whose logits exist at once; 0 is as many as make 2**26 logits, 256 MiB in float32."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the CPU's memory and update there: nothing of it is left on the GPU, and a step
    waits for the CPU (raise `threads`)."""
    offload_reference: bool = False
    """Keep the starting policy in the CPU's memory between uses. With LoRA there is nothing to keep."""
    device_memory_gb: float | None = Field(None, gt=0)
    """Memory that `--dry-run` plans for, in GB (10**9 bytes); by default that of the GPU at hand."""

    @field_validator("quantize")
    @classmethod
    def _frozen_base(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and not info.data.get("lora"):
            raise ValueError("quantized weights cannot be trained; set lora too, for example lora=32")
        return value

    @field_validator("attention")
    @classmethod
    def _masked_attention(cls, value: str) -> str:
        if value != "sdpa":
            raise ValueError(f"{value!r} takes no table of who sees whom, which training needs; leave it at sdpa")
        return value


class DialogueSettings(Settings):
    """Who talks with whom, and how replies are sampled."""

    language: Language = "en"
    user: UserType = "vanilla"
    """Type of the simulated user that the policy trains with."""
    preset: str = "sage"
    """Where emotion starts, how far a reply moves it, when a dialogue ends."""
    profiles: str | None = None
    """File of profiles to train on; by default profiles are generated from the training stories."""
    think: bool = False
    """Whether the policy thinks before it speaks."""
    temperature: float = Field(0.7, gt=0)
    """Of sampling, in training as in the benchmark; log-probs are those of the same temperature. At 1, a tiny model's
    noise drowns what it has learned; use 1 for a large one."""
    max_tokens: int = Field(40, ge=1)
    """Most tokens of one reply, thinking included."""
    batch: int = Field(48, ge=1)
    """Dialogues a step."""


class AlgorithmSettings(Settings):
    """How what was earned becomes what is learned."""

    algo: Literal["grpo", "ppo"] = "grpo"
    credit: Credit = "turn"
    """`terminal`: the final emotion is the reward of every token (RLVER, section 3). `turn`: the change of emotion
    after each reply is its reward, and tokens get the discounted sum of what follows (arXiv 2603.06194)."""
    group: int = Field(4, ge=1)
    """Rollouts of one profile a step; GRPO compares them with each other. PPO needs 1 and always uses 1."""
    epochs: int = Field(1, ge=1)
    """Passes over the dialogues of a step."""
    minibatches: int = Field(4, ge=1)
    """Optimizer updates a pass."""
    lr: float = Field(4e-4, gt=0)
    critic_lr: float = Field(2e-3, gt=0)
    warmup: int = Field(4, ge=0)
    """Steps over which the learning rates rise to their value."""
    final_rate: float = Field(0.1, gt=0, le=1)
    """Share of their value to which the learning rates then fall, linearly, until the last step: a small policy wears
    off again what it has learned if they stay high. 1 keeps them."""
    gamma: float = Field(0.5, ge=0, le=1)
    """Discount from one turn to the next for `turn` credit; `terminal` has none, nor have tokens of one turn."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda from one turn to the next."""
    clip: float = Field(0.2, gt=0)
    """PPO's clip range of the probability ratio."""
    value_clip: float = Field(0.5, gt=0)
    """How far the critic's value may move from the one at sampling."""
    kl: float = Field(0.05, ge=0)
    """Weight of the divergence from the starting policy (k3 estimator) in the loss; it keeps replies fluent."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    max_grad_norm: float = Field(1.0, gt=0)


class RunSettings(Settings):
    """How long the run is, and what it leaves behind."""

    seed: int = 0
    steps: int = Field(24, ge=1)
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints."""
