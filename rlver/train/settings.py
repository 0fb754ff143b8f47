"""The settings of a training run, section by section. `TrainConfig` joins them to one flat list of keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from rlver.agents.base import UserType
from rlver.core.profile import Language
from rlver.train.credit import Credit

Algorithm = Literal["grpo", "ppo", "gae", "rloo", "reinforce++", "dr-grpo"]
"""`gae` is another name of `ppo`."""

KlEstimator = Literal["k1", "k2", "k3"]
"""Schulman's three estimates of KL(policy || reference) from a sampled token (joschu.net/blog/kl-approx.html).

`k1` = -log r with r = reference / policy: unbiased, of either sign; as a loss it has no gradient in expectation, so it
belongs into the reward. `k2` = (log r)^2 / 2: biased, but as a loss its gradient is that of the divergence. `k3` =
r - 1 - log r: unbiased and never negative.
"""

Weighting = Literal["dialogue", "turn", "token", "constant"]
"""`dialogue`: every dialogue counts once, whatever its number of turns and tokens. `turn`: every reply counts once, so
that longer dialogues count more. `token`: every token counts once, so that longer replies count more too; this is what
the published training did (verl's token-mean). `constant`: tokens are summed and divided by the most that a dialogue
can have, so that length neither helps nor hides (Dr. GRPO, arXiv 2503.20783)."""

TrackerName = Literal["wandb", "trackio", "mlflow"]


class Settings(BaseModel):
    """A section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """What is trained, and how it lies in memory."""

    policy: str = "tiny"
    """`tiny` (pretrained on the spot, then kept), or a folder with a Hugging Face causal language model or adapter."""
    threads: int = Field(0, ge=0)
    """Most cores of the CPU at work; 0: all that torch finds. Passes of a small model are computed side by side, each
    operation on one core, to the same results whatever the number; those of a large model are identical only for the
    same number."""
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
    waits for the CPU."""
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
    simulator: str = "embedded"
    """Who plays the user: `embedded`, or a model behind an endpoint (`openai:MODEL@BASE_URL`), as in `rlver bench`."""
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
    slots: int | None = Field(None, ge=1)
    """Most dialogues at work at once, which bounds the memory of the cache; null: all of the batch."""
    engine: str = "local"
    """What samples: `local`, or a server that takes and returns token ids (`vllm@URL`, `vllm-lora@URL`,
    `sglang@URL`), which is given the weights before every step."""


class AlgorithmSettings(Settings):
    """How what was earned becomes what is learned."""

    algo: Algorithm = "grpo"
    """`grpo`, `rloo` and `dr-grpo` compare the rollouts of a profile with each other; `reinforce++` compares with the
    whole batch; `ppo` (or `gae`) has a critic. See `train/advantages`."""
    credit: Credit = "turn"
    """Which turns are paid for what: terminal, change, return or turn. See `train/credit.py`."""
    group: int = Field(4, ge=1)
    """Rollouts of one profile a step. PPO always uses 1; with 1, reinforce++ compares with the batch alone."""
    zero_variance: Literal["keep", "skip", "refill"] = "keep"
    """Groups whose rollouts all fared alike teach nothing. `keep` them in the batch, where only `kl` acts on them;
    `skip` them in the update; or `refill` the batch with other profiles (dynamic sampling, arXiv 2503.14476)."""
    refills: int = Field(2, ge=1)
    """Most times that a step plays more dialogues to refill its batch."""
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
    """Discount from one turn to the next for `return` and `turn` credit; tokens of one turn have none."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda from one turn to the next."""
    clip: float = Field(0.2, gt=0)
    """PPO's clip range of the probability ratio."""
    clip_high: float | None = Field(None, gt=0)
    """Its upper end, where it is another one: more than `clip` keeps entropy up ("clip-higher")."""
    dual_clip: float | None = Field(None, gt=1)
    """Most times its advantage that a bad token may cost; off by default."""
    value_clip: float | None = Field(0.5, gt=0)
    """How far the critic's value may move from the one at sampling; null: as far as it likes."""
    kl: float = Field(0.05, ge=0)
    """Weight of the divergence from the starting policy; it keeps replies fluent."""
    kl_estimator: KlEstimator = "k3"
    """k1, k2 or k3: see `KlEstimator` above."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the divergence is a term of the loss, or is taken off the reward of each token."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    imitation: float = Field(0.0, ge=0)
    """Weight of the reward-weighted imitation of the batch's best dialogues (RLVER's auxiliary loss)."""
    imitation_temperature: float = Field(0.2, gt=0)
    """In units of reward: the smaller, the more the best alone are imitated."""
    weighting: Weighting = "dialogue"
    """What counts once in the loss: a dialogue, a turn, a token, or nothing (`constant`, the default of dr-grpo)."""
    importance_cap: float | None = Field(None, gt=0)
    """Correct for a sampler that is not the trainer: tokens weigh their ratio of probabilities, at most this much.
    Null: the sampler's log-probs are taken at their word, which they deserve if it is the built-in one in float32."""
    max_grad_norm: float = Field(1.0, gt=0)

    @field_validator("algo", mode="before")
    @classmethod
    def _alias(cls, name: object) -> object:
        return "ppo" if name == "gae" else name

    @property
    def rollouts(self) -> int:
        """Rollouts per profile in a step."""
        return 1 if self.algo == "ppo" else self.group


class CurriculumSettings(Settings):
    """Whom the policy meets when."""

    curriculum: Literal["none", "adaptive", "schedule"] = "none"
    """`none`: users of one type, profiles in turn. `adaptive`: the kinds of user whom the policy delights about half
    the time, vanilla ones first. `schedule`: a share of challenging users for each step."""
    curriculum_warmup: int = Field(4, ge=0)
    """Steps in which `adaptive` draws evenly from vanilla users."""
    curriculum_floor: float = Field(0.1, gt=0, le=1)
    """Least weight of a kind of user in `adaptive`, so that none is forgotten and each can be found learnable."""
    curriculum_memory: float = Field(0.7, ge=0, lt=1)
    """How much of a success rate is kept when a step brings a new one."""
    schedule: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, le=1)]] | None = None
    """Step -> share of challenging users from then on, straight lines between: {0: 0, 10: 0.5}."""


class RunSettings(Settings):
    """How long the run is, what it leaves behind, how it is watched, and when it stops early."""

    seed: int = 0
    steps: int = Field(24, ge=1)
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints that are kept. With `stop_on_collapse` the newest from before its window is kept, too."""
    keep_best: bool = True
    """Whether `best/` holds the policy with the best evaluation so far; without `eval_every` there is none."""
    sample_every: int = Field(10, ge=0)
    """Steps between sample dialogues in samples.jsonl and the trackers (the last step always has some); 0 for none."""
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics go besides metrics.jsonl and TensorBoard. Nothing leaves the machine unless the tracker's own
    environment variables say so (WANDB_MODE=online, MLFLOW_TRACKING_URI)."""

    eval_every: int = Field(0, ge=0)
    """Steps between evaluations on held-out users (the last step always has one); 0 for none."""
    eval_n: int = Field(64, ge=1)
    """Profiles of an evaluation; each talks once with a vanilla user and once with the type that is trained with."""
    eval_profiles: str | None = None
    """File of profiles to evaluate on; by default profiles are generated from the validation stories."""

    stop_on_collapse: bool = True
    """Whether the run stops once the policy has collapsed by one of the rules below. None of our sound runs has come
    near them (kl at most 0.4 but for single steps, entropy at least 0.8 of its start, repeated replies under 0.03)."""
    collapse_window: int = Field(5, ge=1)
    """Steps in a row that must be beyond a limit; what the first steps were like is the best of as many."""
    collapse_entropy: float = Field(0.1, ge=0, lt=1)
    """Least entropy, as a share of the entropy of the first steps."""
    collapse_kl: float = Field(2.0, gt=0)
    """Largest divergence from the starting policy, in nats a token."""
    collapse_repeated: float = Field(0.5, gt=0, le=1)
    """Largest share of replies that were said before in the same dialogue."""
    collapse_bad_format: float = Field(0.9, gt=0, le=1)
    """Largest share of dialogues that end by a broken format."""
    collapse_reward: float = Field(0.5, ge=0, lt=1)
    """Least reward (mean over the window), as a share of its best. Without effect with a curriculum, whose users grow
    harder."""
    collapse_patience: int = Field(20, ge=1)
    """Steps in a row for which the reward must be that low."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
