"""The trainer: play dialogues with simulated users, and make the replies that helped more likely.

`Trainer.step` is the whole algorithm: draw users, play, log-probabilities and values, advantages, losses, updates. The
formulas are in `advantages.py` and `losses.py`. It differs from the textbook in these points:

- A dialogue has many replies, and `credit` says which of them a reward is paid for. A final reward alone teaches a
  small policy to stop being generic, and then it stalls.
- Each dialogue has the same weight in the loss, however many turns or tokens it has, unless `weighting` says otherwise.
- The policy is trained on the exact token ids that it sampled. Text is never tokenized again.
- Everything random in a step is drawn from (seed, step), so that a run can be stopped anywhere and resumed with the
  same results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.dialogue import Dialogue
from rlver.core.interfaces import User, UserType
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.evaluation.dialogue_metrics import dialogue_metrics
from rlver.inference.cores import Cores
from rlver.inference.engines.load import LOCAL, load_engine
from rlver.inference.exactness import check_dialogue
from rlver.policies.local import LocalPolicy
from rlver.rollout import closing, run
from rlver.train.advantages import estimate_advantages
from rlver.train.batch import Batch, Sample, collate, from_dialogue, micro_batches, minibatches
from rlver.train.config import TrainConfig
from rlver.train.credit import Reward
from rlver.train.curriculum import Curriculum
from rlver.train.forward import (
    Backward,
    accumulate_gradients,
    hidden_states,
    logprobs_and_entropies,
    map_batches,
    token_logprobs,
)
from rlver.train.groups import play_step
from rlver.train.losses import (
    imitation_loss,
    imitation_weights,
    importance_weights,
    kl_divergence,
    policy_loss,
    token_weights,
    value_loss,
)
from rlver.train.models.critic import explained_variance, make_critic
from rlver.train.models.loading import trainable_parameters
from rlver.train.models.optimizer import make_optimizer
from rlver.train.models.reference import Reference
from rlver.users.embedded.user import EmbeddedUser

_MAX_DIVERGENCE = 10.0
"""Bound of the estimated divergence at one token, in nats. k3 grows with the probability ratio, so that one token that
is far more likely under the reference would otherwise dominate the update."""


class Experience(NamedTuple):
    """What an update needs of the sampled tokens of one dialogue, (T,) each, or of a micro-batch, (N,) each."""

    sampler_logprobs: Tensor
    """Log-probabilities that the sampler reported."""
    old_logprobs: Tensor
    """Log-probabilities before the first update of the step."""
    ref_logprobs: Tensor
    """Log-probabilities under the starting policy; without a reference (`kl: 0`), those of the sampler."""
    importance: Tensor
    """Weights that correct for the sampler; ones if its log-probabilities are taken as they are."""
    advantages: Tensor
    old_values: Tensor
    """The critic's values before the first update; zeros without a critic."""
    returns: Tensor
    """The critic's targets."""
    imitation: Tensor
    """Weights in the imitation of good dialogues."""


class Trainer:
    """Trains a causal language model in place. `step` is the algorithm.

    Args:
        users: one simulated user for all user types of the run, or one for each.
        profiles: those to train on; by default they are generated from the training stories.
        weights: folder through which a sampling server receives the weights.
        reward: a reward of your own, which replaces the emotion; see `turn_rewards`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        users: User | Mapping[UserType, User],
        profiles: Sequence[Profile] | None = None,
        weights: Path | None = None,
        reward: Reward | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.users = users if isinstance(users, Mapping) else dict.fromkeys(config.user_types, users)
        self.reward = reward
        self.cores = Cores(model, config.threads)
        self.policy = LocalPolicy(
            model,
            tokenizer,
            config.language,
            think=config.think,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            engine=None if config.engine == LOCAL else load_engine(config.engine, model, weights=weights),
            cores=self.cores,
        )
        self._logit_options = config.temperature, config.logit_tokens
        self.reference = Reference(model, *self._logit_options, config.offload_reference) if config.kl else None
        self.critic = make_critic(model) if config.algo == "ppo" else None
        offload = config.offload_optimizer
        self.optimizers = {"optimizer": make_optimizer(trainable_parameters(model), config.lr, offload=offload)}
        if self.critic is not None:
            parameters = self.critic.trainable_parameters()
            self.optimizers["critic_optimizer"] = make_optimizer(parameters, config.critic_lr, offload=offload)
        self.curriculum = Curriculum(config, profiles)
        self._checked = False
        self._max_tokens = config.rules.replies * config.max_tokens
        self.failures: list[str] = []
        """Why dialogues of the last step failed, one entry per dialogue."""
        self.seconds: dict[str, float] = {}
        """Duration of each phase of the last step: `rollout`, `reference` (log-probabilities and values), `update`."""

    def step(self, step: int) -> tuple[dict[str, float], list[Dialogue]]:
        """Do step number `step` (from 0). Returns its metrics and the dialogues that it learned from."""
        config = self.config

        # Draw users and play: groups of rollouts of the same profile, all in one batch.
        with self._timed("rollout"):
            self.sync_weights()
            rollouts = play_step(config, step, self.curriculum, self.policy, self.users, self.reward)
        self.failures = rollouts.failures
        dialogues = [dialogue for group in rollouts.groups for dialogue in group.dialogues]
        rewards = [row for group in rollouts.groups for row in group.rewards]
        self._check_once(dialogues)
        samples = [from_dialogue(dialogue) for dialogue in dialogues]
        turns = [sample.turns for sample in samples]

        # Log-probabilities and values before the first update: (T,) per dialogue, one entry per sampled token.
        with self._timed("reference"), torch.no_grad():
            ref_logprobs = self.ref_logprobs(samples)
            old_logprobs, importance = self.old_logprobs(samples)
            values = self.values(samples)

        # Advantages, (T,) per dialogue. The divergence from the starting policy is subtracted from the rewards here,
        # or it is a term of the loss below (`kl_in`).
        penalties = None
        if config.kl_in == "reward":
            penalties = [config.kl * self.kl(*pair) for pair in zip(old_logprobs, ref_logprobs, strict=True)]
        advantages, returns = estimate_advantages(config, turns, rewards, values, penalties)
        imitation = self.imitation(dialogues, rewards, turns)
        sampler_logprobs = [sample.logprobs for sample in samples]
        columns = (sampler_logprobs, old_logprobs, ref_logprobs, importance, advantages, values, returns, imitation)
        experiences = [Experience(*row) for row in zip(*columns, strict=True)]
        metrics = rollouts.metrics | self._metrics(dialogues, rewards, experiences)

        # Losses and updates: clipped gradient steps on minibatches of dialogues, split into micro-batches (`losses`).
        terms: dict[str, float] = {}
        updates = 0
        with self._timed("update"):
            self._set_training(True)
            self._set_learning_rates(step)
            seed = derive(config.seed, "minibatches", step)
            for part in minibatches(len(samples), config.epochs, config.minibatches, seed):
                losses, gap = self.compute_gradients([samples[i] for i in part], [experiences[i] for i in part])
                losses["grad_norm"] = self.apply_gradients()
                # Before the first update, sampler and trainer hold the same weights, so they must agree.
                metrics.setdefault("logprob_gap", gap)
                _add(terms, losses)
                updates += 1
        return metrics | {name: value / updates for name, value in terms.items()}, dialogues

    def sync_weights(self) -> None:
        """Make the policy ready to sample: switch dropout off and give the sampler the current weights."""
        self._set_training(False)
        run(closing(self.policy.update_weights(), self.policy))

    def old_logprobs(self, samples: Sequence[Sample]) -> tuple[list[Tensor], list[Tensor]]:
        """(T,) log-probabilities before the first update and (T,) importance weights, for each dialogue.

        The log-probabilities are the sampler's, or with `importance_cap` those that the trained model computes.
        """
        sampler_logprobs = [sample.logprobs for sample in samples]
        cap = self.config.importance_cap
        if cap is None:
            return sampler_logprobs, [torch.ones(len(row)) for row in sampler_logprobs]
        old_logprobs = self.map_batches(self._logprobs, samples)
        pairs = zip(old_logprobs, sampler_logprobs, strict=True)
        return old_logprobs, [importance_weights(*pair, cap) for pair in pairs]

    def ref_logprobs(self, samples: Sequence[Sample]) -> list[Tensor]:
        """(T,) log-probabilities under the starting policy; without a reference, those of the sampler."""
        if self.reference is None:
            return [sample.logprobs for sample in samples]
        with self.reference.on_device():
            return self.map_batches(self.reference, samples)

    def values(self, samples: Sequence[Sample]) -> list[Tensor]:
        """(T,) the critic's value before each sampled token; zeros without a critic."""
        if self.critic is None:
            return [torch.zeros(len(sample.trained)) for sample in samples]
        return self.map_batches(self.critic, samples)

    def kl(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """(N,) estimated divergence from the starting policy at each token, in nats, clamped to a bound."""
        divergence = kl_divergence(logprobs, ref_logprobs, self.config.kl_estimator)
        return divergence.clamp(-_MAX_DIVERGENCE, _MAX_DIVERGENCE)

    def imitation(
        self, dialogues: Sequence[Dialogue], rewards: Sequence[Sequence[float]], turns: Sequence[Tensor]
    ) -> list[Tensor]:
        """(T,) weight of each dialogue in the imitation loss, at each of its tokens."""
        totals = [dialogue.reward for dialogue in dialogues] if self.reward is None else list(map(sum, rewards))
        weights = imitation_weights(torch.tensor(totals), self.config.imitation_temperature)
        return [weight.expand(len(row)) for weight, row in zip(weights, turns, strict=True)]

    def compute_gradients(
        self, samples: Sequence[Sample], experiences: Sequence[Experience]
    ) -> tuple[dict[str, float], float]:
        """Compute the gradients of a minibatch, micro-batch by micro-batch.

        Returns:
            The terms of the loss, as weighted means over tokens, and the largest difference between the trainer's and
            the sampler's log-probability of a token.
        """
        config = self.config
        weights = token_weights([sample.turns for sample in samples], config.weighting, self._max_tokens)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

        def compute(part: list[int], backward: Backward) -> tuple[dict[str, float], float]:
            batch = collate([samples[i] for i in part], self.model.device)
            columns = zip(*(experiences[i] for i in part), strict=True)
            experience = Experience(*(torch.cat(column).to(self.model.device) for column in columns))
            weight = torch.cat([weights[i] for i in part]).to(self.model.device)
            return self.losses(batch, experience, weight, backward)

        parameters = [*trainable_parameters(self.model)]
        if self.critic is not None:
            parameters += self.critic.trainable_parameters()
        totals: dict[str, float] = {}
        gaps = []
        parts = micro_batches(samples, config.micro_tokens)
        for terms, gap in accumulate_gradients(compute, parts, parameters, self.cores):
            _add(totals, terms)
            gaps.append(gap)
        return totals, max(gaps)

    def losses(
        self, batch: Batch, experience: Experience, weight: Tensor, backward: Backward
    ) -> tuple[dict[str, float], float]:
        """Compute the losses of a micro-batch and pass them to `backward`.

        Args:
            weight: (N,) weight of each token in the loss.

        Returns:
            As `compute_gradients`, but sums instead of means: they add up to means over all micro-batches.
        """
        config = self.config
        hidden = hidden_states(self.model, batch)
        logprobs, entropy = logprobs_and_entropies(
            self.model, hidden, batch.targets, *self._logit_options, entropy_gradient=config.entropy > 0
        )
        clips = config.clip, config.clip_high, config.dual_clip
        surrogate, clipped = policy_loss(logprobs, experience.old_logprobs, experience.advantages, *clips)
        surrogate = experience.importance * surrogate
        kl = self.kl(logprobs, experience.ref_logprobs)
        loss = surrogate - config.entropy * entropy
        terms = {"loss": surrogate, "entropy": entropy, "clip_fraction": clipped}
        if self.reference is not None:
            terms["kl"] = kl
        if config.kl_in == "loss":
            loss = loss + config.kl * kl
        if config.imitation:
            terms["imitation"] = imitation_loss(logprobs, experience.imitation)
            loss = loss + config.imitation * terms["imitation"]
        backward((weight * loss).sum())
        gap = float((logprobs - experience.sampler_logprobs).detach().abs().max())
        if self.critic is not None:
            terms["value_loss"] = value_loss(
                self.critic(batch), experience.old_values, experience.returns, config.value_clip
            )
            backward((weight * terms["value_loss"]).sum())
        return {name: float((weight * term.detach()).sum()) for name, term in terms.items()}, gap

    def apply_gradients(self) -> float:
        """Clip the gradients and update the weights. Returns the norm of the policy's gradient before clipping."""
        max_norm = self.config.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(trainable_parameters(self.model), max_norm))
        if self.critic is not None:
            torch.nn.utils.clip_grad_norm_(self.critic.trainable_parameters(), max_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return norm

    def map_batches(self, compute: Callable[[Batch], Tensor], samples: Sequence[Sample]) -> list[Tensor]:
        """(T,) per sample: what `compute` returns, (N,) per batch, in micro-batches."""
        return map_batches(compute, samples, self.cores, self.config.micro_tokens, self.model.device)

    def _logprobs(self, batch: Batch) -> Tensor:
        """(N,) log-probabilities of the trained tokens at the sampling temperature."""
        return token_logprobs(self.model, hidden_states(self.model, batch), batch.targets, *self._logit_options)

    def _metrics(
        self, dialogues: Sequence[Dialogue], rewards: Sequence[Sequence[float]], experiences: Sequence[Experience]
    ) -> dict[str, float]:
        """Metrics that are known before the first update."""
        columns = Experience(*map(torch.cat, zip(*experiences, strict=True)))
        metrics = {"tokens": float(len(columns.advantages))}
        if self.critic is not None:
            metrics["explained_variance"] = explained_variance(columns.old_values, columns.returns)
        if self.config.importance_cap is not None:
            metrics["importance"] = float(columns.importance.mean())
        embedded = all(isinstance(user, EmbeddedUser) for user in self.users.values())
        metrics |= dialogue_metrics(dialogues, always_fit=embedded)
        if self.reward is not None:
            metrics["custom_reward"] = fmean(map(sum, rewards))
        return metrics

    def _check_once(self, dialogues: Sequence[Dialogue]) -> None:
        """Check the token ids of the first step against its texts and the chat template."""
        if not self._checked:
            for dialogue in dialogues:
                check_dialogue(self.policy.chat, dialogue)
            self._checked = True

    def _set_training(self, mode: bool) -> None:
        """Switch between training and inference mode. Dropout and gradient checkpointing act in training mode only."""
        self.model.train(mode)
        if self.critic is not None:
            self.critic.train(mode)

    def _set_learning_rates(self, step: int) -> None:
        rates = (self.config.lr, self.config.critic_lr)
        for optimizer, rate in zip(self.optimizers.values(), rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate * self.config.learning_rate_factor(step)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Measure how long a phase of the step takes."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - began


def _add(totals: dict[str, float], terms: Mapping[str, float]) -> None:
    for name, value in terms.items():
        totals[name] = totals.get(name, 0.0) + value
