"""The settings of a training run, section by section. `TrainConfig` joins them to one flat list of keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rlver.agents.base import UserType
from rlver.core.profile import Language
from rlver.train.credit import Credit

TrackerName = Literal["wandb", "trackio", "mlflow"]


class Settings(BaseModel):
    """A section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Settings):
    """What is trained, and how it lies in memory."""

    policy: str = "tiny"
    """`tiny` (pretrained on the spot, then kept) or a folder with a Hugging Face causal language model."""
    threads: int = Field(1, ge=1)
    """CPU threads of torch. A small model gains little by more, and results are identical only for the same number."""
    micro_tokens: int = Field(4096, ge=1)
    """Most tokens of one forward-backward pass."""


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
