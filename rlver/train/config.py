"""Every setting of a training run, with its unit and the reason for its default.

`TrainConfig` is the one place that knows what a valid configuration is: it derives the defaults that depend on other
settings and rejects values that are wrong by themselves or in combination. `TrainConfig(algo="dr-grpo")` in Python and
`rlver train --algo dr-grpo` therefore start the same run. The settings are grouped into sections, so that a function
can say in its signature which of them it reads; users see one flat list.

The defaults suit the tiny policy. Learning rates for a 7B model are about a thousand times smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rlver.core.emotion import PRESETS, Preset, get_preset
from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.llm.endpoint import is_endpoint
from rlver.train.credit import Credit

Algorithm = Literal["grpo", "ppo", "gae", "rloo", "reinforce++", "dr-grpo"]
"""`gae` is another name for `ppo`."""

KlEstimator = Literal["k1", "k2", "k3"]
"""Schulman's three estimators of KL(policy || reference) from one sampled token (joschu.net/blog/kl-approx.html).

Let r = reference probability / policy probability. `k1` = -log r is unbiased and can have either sign; used as a loss,
its expected gradient is zero, so it belongs in the reward. `k2` = (log r)^2 / 2 is biased, but its gradient as a loss
is that of the divergence. `k3` = r - 1 - log r is unbiased and never negative.
"""

Weighting = Literal["dialogue", "turn", "token", "constant"]
"""What counts once in the loss. `dialogue`: each dialogue, however many turns and tokens it has. `turn`: each reply, so
that longer dialogues count more. `token`: each token, so that longer replies count more, too; the published training
did this (verl's token-mean). `constant`: token losses are summed and divided by the largest possible number of tokens
of a dialogue, so that length neither helps nor hurts (Dr. GRPO, arXiv 2503.20783)."""

TrackerName = Literal["wandb", "trackio", "mlflow"]

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]

FILE_SETTINGS = ("profiles", "eval_profiles")
"""Settings that name a file. In a YAML file, they are relative to the folder of that file."""

_RENAMED = {"simulator": "user"}
"""Settings that had another name before."""


class SettingError(RlverError):
    """A setting has a wrong value. The message names the setting, the value, and what is allowed."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class Settings(BaseModel):
    """A section of the configuration. It is immutable and rejects unknown settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Report the first wrong setting in one sentence."""
        try:
            return validate(values)
        except ValidationError as error:
            raise _setting_error(error, cls, values) from None


class ModelSettings(Settings):
    """What is trained, and where it lies in memory."""

    policy: str = "tiny"
    """`tiny` (pretrained on first use, then cached), or a folder that holds a Hugging Face causal language model or a
    LoRA adapter."""
    threads: NonNegativeInt = 0
    """Number of CPU cores to use; 0 uses all that torch reports. Passes of a small model run in parallel, with each
    operation on one core, so the results are the same for any number of cores. Passes of a large model run one after
    another on all cores; their results are reproducible for the same number of cores."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` or `mps`. `auto` chooses a GPU if there is one and the model is large enough to profit,
    otherwise the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights and of the computation. `auto` is float32 on a CPU and bfloat16 on a GPU. The optimizer keeps
    a float32 copy of trained bfloat16 weights, and log-probabilities are always float32."""
    lora: NonNegativeInt = 0
    """Rank of the LoRA adapters; 0 trains all weights. With adapters the base is frozen and shared by policy, reference
    and critic. Needs `peft`. Suitable learning rates are about ten times those of full training."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapters: their output is multiplied by lora_alpha / lora. 32 is `peft`'s usual choice."""
    lora_targets: str | list[str] = "all-linear"
    """Modules that get an adapter: `all-linear` (all but the output layer) or a list such as [q_proj, v_proj]."""
    lora_dropout: ShareBelowOne = 0.0
    """Dropout before the adapters during updates. Sampling never drops anything out, so any other value than 0 makes
    the sampler differ from the trained policy."""
    quantize: Literal["none", "4bit"] = "none"
    """`4bit` loads the base as NF4 with double quantization (QLoRA, arXiv 2305.14314). Needs LoRA, a GPU and
    `bitsandbytes`."""
    attention: str = "sdpa"
    """Attention implementation. Only PyTorch's is supported: training passes explicit attention masks, which
    flash-attention 2 does not accept. Without masks (no thinking) PyTorch uses its own flash kernel."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer and recompute the rest in the backward pass: a third more computation, a
    fraction of the activation memory, the same gradients."""
    micro_tokens: PositiveInt = 4096
    """Largest number of tokens in one forward and backward pass, padding included. A longer dialogue forms a
    micro-batch of its own."""
    logit_tokens: NonNegativeInt = 0
    """Number of trained tokens whose logits exist at the same time. 0 chooses as many as give 2**26 logits, which are
    256 MiB in float32."""
    offload_optimizer: bool = False
    """Keep the optimizer state in CPU memory and update there. It then takes no GPU memory, but each update waits for
    the CPU."""
    offload_reference: bool = False
    """Keep the reference model in CPU memory while it is not needed. Has no effect with LoRA, where the reference is
    the base model."""
    device_memory_gb: PositiveFloat | None = None
    """Memory that `--dry-run` plans for, in GB (10**9 bytes); by default that of the GPU in this machine."""

    @field_validator("quantize")
    @classmethod
    def _needs_lora(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and not info.data.get("lora"):
            raise ValueError("quantized weights cannot be trained; set lora, too, for example lora=32")
        return value

    @field_validator("attention")
    @classmethod
    def _accepts_masks(cls, value: str) -> str:
        if value != "sdpa":
            raise ValueError("must be 'sdpa', the only implementation that accepts the attention masks of training")
        return value


class DialogueSettings(Settings):
    """The users, their language and rules, and how the policy replies to them."""

    language: Language = "en"
    """Language of the dialogues. The tiny policy is pretrained in this language."""
    user: str = "embedded"
    """What plays the simulated user: `embedded`, or a model behind an endpoint (`openai:MODEL@BASE_URL`,
    `any:PROVIDER/MODEL`), as in `rlver bench`. `vanilla` and `challenging` are short for the embedded user of that
    type."""
    user_type: UserType = "vanilla"
    """Vanilla users hint at what they need; challenging users never do and want more. Policies trained with vanilla
    users score higher, as in the paper."""
    preset: Preset | str = "sage"
    """Rules of the emotion: where it starts, how far a reply moves it, and when a dialogue ends. The name of a built-in
    preset or, in Python, a `Preset`. `sage` is the benchmark's."""
    profiles: str | None = None
    """File of profiles to train on; by default profiles are generated from the training stories."""
    think: bool = False
    """Whether the policy thinks before it replies."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature. Log-probabilities are those at the same temperature. At 1, the noise of the tiny policy
    drowns what it learns; use 1 for a large model."""
    max_tokens: PositiveInt = 40
    """Largest number of tokens in a reply, thinking included. 80 by default if the policy thinks. Replies of the tiny
    policy are shorter than 40 tokens."""
    batch: PositiveInt = 48
    """Dialogues per step."""
    slots: PositiveInt | None = None
    """Largest number of dialogues that are played at the same time, which bounds the memory of the KV cache. By
    default, the whole batch."""
    engine: str = "local"
    """What samples: `local`, or a server that accepts and returns token ids (`vllm@URL`, `vllm-lora@URL`,
    `sglang@URL`). A server receives the current weights before every step."""

    @field_validator("user")
    @classmethod
    def _known_user(cls, value: str) -> str:
        if value == "human":
            raise ValueError("training takes thousands of dialogues; `rlver chat` is for people")
        if value != "embedded" and not is_endpoint(value):
            known = ("embedded", *get_args(UserType), "openai:MODEL@BASE_URL")
            raise ValueError(f"must be {', '.join(known)} or any:PROVIDER/MODEL")
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | Preset) -> str | Preset:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"must be {_one_of(PRESETS)}, or a Preset in Python")
            return value
        return value.name if PRESETS.get(value.name) == value else value

    @property
    def rules(self) -> Preset:
        """The preset as an object."""
        return get_preset(self.preset) if isinstance(self.preset, str) else self.preset


class AlgorithmSettings(Settings):
    """How rewards become advantages, and advantages become updates."""

    algo: Algorithm = "grpo"
    """`grpo`, `rloo` and `dr-grpo` compare the rollouts of a profile with each other; `reinforce++` compares with the
    whole batch; `ppo` (or `gae`) has a critic. See `rlver/train/advantages.py`."""
    credit: Credit = "turn"
    """Which turns are rewarded for what: `terminal`, `change`, `return` or `turn`; see `rlver/train/credit.py`. A
    terminal reward alone teaches a small policy only to stop being generic."""
    group: PositiveInt = 4
    """Rollouts per profile and step. PPO always plays one. With 1, `reinforce++` compares with the batch alone."""
    zero_variance: Literal["keep", "skip", "refill"] = "keep"
    """What to do with groups whose rollouts all earned the same, which have no gradient but that of `kl`: `keep` them
    in the batch, `skip` them, or `refill` the batch with other profiles (dynamic sampling, arXiv 2503.14476)."""
    refills: PositiveInt = 2
    """Largest number of times that a step plays further dialogues to refill its batch."""
    epochs: PositiveInt = 1
    """Passes over the dialogues of a step."""
    minibatches: PositiveInt = 4
    """Optimizer updates per pass."""
    lr: PositiveFloat = 4e-4
    """Learning rate of the policy (AdamW)."""
    critic_lr: PositiveFloat = 2e-3
    """Learning rate of the critic (AdamW). It starts from zero and must learn faster than the policy."""
    warmup: NonNegativeInt = 4
    """Steps over which the learning rates rise linearly to their value."""
    final_rate: PositiveShare = 0.1
    """Share of the learning rates that is left in the last step, after a linear decay. A small policy loses again what
    it has learned if the rates stay high; 1 keeps them constant."""
    gamma: Share = 0.5
    """Discount from one turn to the next for `return` and `turn` credit. The tokens of one turn are not discounted. A
    reply mostly moves the emotion at once, so that a short horizon suffices and has less variance."""
    lam: Share = 1.0
    """GAE's lambda from one turn to the next. 1 trusts the rewards more than a critic that is still learning."""
    clip: PositiveFloat = 0.2
    """PPO's clip range: how far the probability ratio may move from 1. 0.2 is the paper's value."""
    clip_high: PositiveFloat | None = None
    """Upper end of the clip range if it differs; a value above `clip` keeps the entropy up ("clip-higher")."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Upper bound of the loss of a token with a negative advantage, as a multiple of that advantage. Off by default."""
    value_clip: PositiveFloat | None = 0.5
    """How far the critic's value may move from its value before the first update, in units of reward; null is
    unlimited."""
    kl: NonNegativeFloat = 0.05
    """Weight of the divergence from the starting policy, which keeps replies fluent. 0 needs no reference model."""
    kl_estimator: KlEstimator = "k3"
    """Estimator of the divergence; see `KlEstimator`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the divergence is a term of the loss or is subtracted from the reward of each token."""
    entropy: NonNegativeFloat = 0.0
    """Weight of the entropy bonus. The divergence already keeps the entropy up, so it is off by default."""
    imitation: NonNegativeFloat = 0.0
    """Weight of the reward-weighted imitation of the batch's best dialogues (RLVER's auxiliary loss)."""
    imitation_temperature: PositiveFloat = 0.2
    """Temperature of the imitation weights, in units of reward. The smaller it is, the more the best dialogues
    dominate."""
    weighting: Weighting = "dialogue"
    """What counts once in the loss: a dialogue, a turn, a token, or nothing (`constant`, the default of `dr-grpo`)."""
    importance_cap: PositiveFloat | None = None
    """Correct for a sampler that differs from the trained policy: each token is weighted by its probability ratio, at
    most by this cap. Null takes the sampler's log-probabilities as they are, which is right for the built-in sampler
    in float32. 2 by default if a server samples."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm to which larger gradients are scaled down, for policy and critic separately."""

    @field_validator("algo", mode="before")
    @classmethod
    def _resolve_alias(cls, name: object) -> object:
        return "ppo" if name == "gae" else name

    @property
    def rollouts(self) -> int:
        """Rollouts per profile and step."""
        return 1 if self.algo == "ppo" else self.group


class CurriculumSettings(Settings):
    """Which users the policy meets, and when."""

    curriculum: Literal["none", "adaptive", "schedule"] = "none"
    """`none`: users of one type, profiles in turn. `adaptive`: mostly the kinds of user that the policy delights about
    half the time, vanilla ones first. `schedule`: a given share of challenging users for each step."""
    curriculum_warmup: NonNegativeInt = 4
    """Steps in which `adaptive` draws vanilla users of every intention equally often."""
    curriculum_floor: PositiveShare = 0.1
    """Smallest weight of a kind of user in `adaptive`, so that none is forgotten."""
    curriculum_memory: ShareBelowOne = 0.7
    """Weight of the old success rate when a step brings a new one (exponential moving average)."""
    schedule: dict[NonNegativeInt, Share] | None = None
    """Step -> share of challenging users, interpolated linearly in between: {0: 0, 10: 0.5}."""


class RunSettings(Settings):
    """How long a run is, what it writes, how it is watched, and when it stops early."""

    seed: int = 0
    """Everything random is drawn from this number and the number of the step."""
    steps: PositiveInt = 24
    """Training steps. Each plays `batch` dialogues and makes `epochs` x `minibatches` updates."""
    save_every: PositiveInt = 10
    """Steps between checkpoints. The last step always writes one."""
    keep_last: PositiveInt = 2
    """Number of checkpoints that are kept. With `stop_on_collapse`, the newest one that is older than the window of the
    rules is kept, too."""
    keep_best: bool = True
    """Whether `best/` holds the policy with the best evaluation so far. Needs `eval_every`."""
    sample_every: NonNegativeInt = 10
    """Steps between sample dialogues in samples.jsonl and the trackers; 0 writes none. The last step always writes
    some otherwise."""
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics go besides metrics.jsonl and TensorBoard: wandb, trackio, mlflow. Nothing leaves the machine unless
    the tracker's own environment variables say so (WANDB_MODE=online, MLFLOW_TRACKING_URI)."""

    eval_every: NonNegativeInt = 0
    """Steps between evaluations on held-out users; 0 evaluates never. The last step always has one otherwise."""
    eval_n: PositiveInt = 64
    """Profiles per evaluation. Each is played once with a vanilla user and once with a user of the trained type."""
    eval_profiles: str | None = None
    """File of profiles to evaluate on; by default profiles are generated from the validation stories."""

    stop_on_collapse: bool = True
    """Whether the run stops once the policy has collapsed by one of the rules below. Healthy runs stayed far from them
    (kl at most 0.4 except in single steps, entropy at least 0.8 of its start, repeated replies below 0.03)."""
    collapse_window: PositiveInt = 5
    """Number of consecutive steps that must exceed a limit. The first steps, with which later ones are compared, are as
    many."""
    collapse_entropy: ShareBelowOne = 0.1
    """Smallest entropy, as a share of the entropy of the first steps."""
    collapse_kl: PositiveFloat = 2.0
    """Largest divergence from the starting policy, in nats per token."""
    collapse_repeated: PositiveShare = 0.5
    """Largest share of replies that repeat an earlier reply of the same dialogue."""
    collapse_bad_format: PositiveShare = 0.9
    """Largest share of dialogues that end because a reply breaks the format."""
    collapse_reward: ShareBelowOne = 0.5
    """Smallest reward (mean over the window), as a share of the best one. Not applied with a curriculum, whose users
    become harder, nor with a reward of your own."""
    collapse_patience: PositiveInt = 20
    """Number of consecutive steps for which the reward must be that low."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _accept_one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TrainConfig(RunSettings, CurriculumSettings, AlgorithmSettings, DialogueSettings, ModelSettings):
    """The complete configuration of a training run.

    Raises:
        SettingError: a setting is unknown, has a wrong value, or does not go together with another one.
    """

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        """Fill in the defaults that depend on other settings."""
        if not isinstance(values, Mapping):
            return values
        values = expand_user(values)
        derived: dict[str, Any] = {}
        if values.get("think"):
            derived["max_tokens"] = 80
        if values.get("algo") == "dr-grpo":
            derived["weighting"] = "constant"
        if values.get("engine", "local") != "local":
            derived["importance_cap"] = 2.0
        return derived | values

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.batch % self.rollouts:
            raise SettingError("batch", f"batch={self.batch} must be a multiple of group={self.group}.")
        if self.algo in ("grpo", "rloo", "dr-grpo") and self.group < 2:
            raise SettingError(
                "group",
                f"group={self.group} must be at least 2: {self.algo} compares the rollouts of a profile.",
            )
        if self.zero_variance != "keep" and self.rollouts < 2:
            raise SettingError(
                "zero_variance",
                f"zero_variance={self.zero_variance!r} needs groups of rollouts, but algo={self.algo!r} with "
                f"group={self.group} plays one rollout per profile; set zero_variance=keep.",
            )
        if (self.curriculum == "schedule") != bool(self.schedule):
            raise SettingError(
                "schedule",
                f"curriculum={self.curriculum!r} and schedule={self.schedule} do not go together: curriculum=schedule "
                "needs a schedule such as {0: 0, 10: 0.5}, and no other curriculum takes one.",
            )
        return self

    @property
    def user_types(self) -> tuple[UserType, ...]:
        """The user types that the run can draw."""
        return (self.user_type,) if self.curriculum == "none" else get_args(UserType)

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the learning rates at `step` (from 0): a linear warm-up, then a linear decay to `final_rate`."""
        remaining = 1 - max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return min((step + 1) / (self.warmup + 1), self.final_rate + (1 - self.final_rate) * remaining)


def load_config(file: Path | None, overrides: list[str], options: Mapping[str, Any]) -> TrainConfig:
    """The configuration from a YAML file, options and overrides; what comes later wins.

    Args:
        file: YAML file of settings. Those that name a file are relative to the folder of this file.
        overrides: `key=value` pairs, as `--set` takes them. Values are YAML.
        options: settings by name.

    Raises:
        RlverError: the file or an override cannot be read, or a setting is wrong. If the wrong value stands in the
            file, the message names the file.
    """
    from_file = {} if file is None else _read_settings(file)
    from_overrides = dict(map(_parse_override, overrides))
    try:
        values = expand_user(from_file) | expand_user(options) | expand_user(from_overrides)
        return TrainConfig.model_validate(values)
    except SettingError as error:
        if error.setting in set(map(str, from_file)) - options.keys() - from_overrides.keys():
            raise SettingError(error.setting, f"{file}: {error}") from None
        raise


def expand_user(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Spell out the short forms `user: vanilla` and `user: challenging`.

    Raises:
        SettingError: the short form contradicts `user_type`.
    """
    short = values.get("user")
    if short not in get_args(UserType):
        return dict(values)
    if values.get("user_type", short) != short:
        raise SettingError("user", f"user={short!r} and user_type={values['user_type']!r} contradict each other.")
    return {**values, "user": "embedded", "user_type": short}


def _read_settings(file: Path) -> dict[Any, Any]:
    try:
        settings = yaml.safe_load(read_file(file))
    except (yaml.YAMLError, ValueError) as error:  # an impossible date raises ValueError
        raise RlverError(f"{file}: not valid YAML ({str(error).splitlines()[0]}).") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise RlverError(f"{file}: must hold settings, one `key: value` per line.")
    for key in FILE_SETTINGS:
        if isinstance(settings.get(key), str):
            settings[key] = str(file.parent / settings[key])
    policy = settings.get("policy")
    if isinstance(policy, str) and policy != "tiny" and (file.parent / policy).exists():
        settings["policy"] = str(file.parent / policy)
    return settings


def _parse_override(override: str) -> tuple[str, Any]:
    key, sign, value = override.partition("=")
    if not sign:
        raise RlverError(f"--set {override!r}: must have the form key=value, for example --set lr=5e-4.")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise RlverError(f"--set {override!r}: {value!r} is not a valid YAML value.") from None


def _setting_error(error: ValidationError, section: type[Settings], values: Any) -> SettingError:
    """The first error of a section in one sentence."""
    first = error.errors()[0]
    setting, *inner = first["loc"] or ("",)
    if first["type"] == "extra_forbidden":
        return SettingError(str(setting), _unknown_setting(str(setting), section))
    value = values.get(setting) if isinstance(values, Mapping) else values
    where = f"{setting}={value!r}" if setting else repr(value)
    if first["type"] == "missing":
        return SettingError(str(setting), f"{where}: {inner[-1]} is missing.")
    if inner and first["input"] != value:
        where += f": {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should ", "must ").split(", unable to")[0]
    return SettingError(str(setting), f"{where}{' ' if message.startswith('must ') else ': '}{message}.")


def _unknown_setting(name: str, section: type[Settings]) -> str:
    if name in _RENAMED:
        return f"unknown setting {name!r}; it is now called {_RENAMED[name]!r}."
    known = list(section.model_fields)
    if similar := get_close_matches(name, known):
        return f"unknown setting {name!r}; did you mean {_one_of(map(repr, similar))}?"
    return f"unknown setting {name!r}; the settings are {', '.join(known)}."


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
