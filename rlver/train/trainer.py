"""The trainer: sample dialogues, ask the users how they felt, make what helped more likely. GRPO and PPO.

One step, top to bottom: play a batch of dialogues -> a sample of exact token ids for each -> rewards by turn ->
advantages by token -> a few clipped updates. It differs from the textbook in three points. Rewards can be given
where they were earned (`credit="turn"`): a terminal reward alone teaches a small policy to stop being generic and
then stalls. Every dialogue weighs the same in the loss, however many turns or tokens it has. And whatever is drawn
in a step is drawn from (seed, step), so that a run can be stopped anywhere and resumed to the same numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.agents.base import SentientAgent
from rlver.core.dialogue import Dialogue
from rlver.core.emotion import get_preset
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.policies.local import LocalPolicy
from rlver.rollout import play
from rlver.stories.generate import generate
from rlver.train.advantages.gae import gae, whiten
from rlver.train.advantages.grpo import grpo_terminal, grpo_turns
from rlver.train.config import TrainConfig
from rlver.train.credit import returns, turn_rewards
from rlver.train.losses.kl import kl_k3
from rlver.train.losses.policy import policy_loss
from rlver.train.losses.value import value_loss
from rlver.train.metrics import dialogue_metrics
from rlver.train.models.critic import explained_variance, make_critic
from rlver.train.models.loading import learning
from rlver.train.models.logits import token_logprobs
from rlver.train.models.optimizer import make_optimizer
from rlver.train.models.reference import Reference
from rlver.train.samples import Sample, collate, from_trace, hidden_states, micro_batches

_MAX_DIVERGENCE = 10.0
"""Largest estimate of the divergence at one token, in nats; k3 grows with the ratio of the probabilities itself."""


@dataclass
class Experience:
    """One dialogue, ready to learn from. Tensors are (T,): one entry per sampled token."""

    sample: Sample
    reference: Tensor
    """Log-probs under the starting policy; without a reference, those at sampling."""
    advantages: Tensor
    values: Tensor
    """The critic's values at sampling; zeros without a critic."""
    returns: Tensor
    """The critic's targets."""


class Trainer:
    """Trains a causal language model in place; `step` is the algorithm."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        agent: SentientAgent,
        profiles: Sequence[Profile] | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.agent = agent
        self.preset = get_preset(config.preset)
        self.policy = LocalPolicy(
            model,
            tokenizer,
            config.language,
            think=config.think,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
        )
        self.reference = (
            Reference(model, config.temperature, config.logit_tokens, config.offload_reference) if config.kl else None
        )
        self.critic = make_critic(model) if config.algo == "ppo" else None
        self.optimizers = {"optimizer": make_optimizer(learning(model), config.lr, offload=config.offload_optimizer)}
        if self.critic is not None:
            self.optimizers["critic_optimizer"] = make_optimizer(
                self.critic.learning(), config.critic_lr, offload=config.offload_optimizer
            )
        self._profiles = profiles

    def step(self, step: int) -> tuple[dict[str, float], list[Dialogue]]:
        """Do step number `step` (from 0). Returns its metrics and the dialogues that it played."""
        config = self.config
        dialogues, samples = self._play(step)
        experiences, metrics = self._evaluate(dialogues, samples)
        metrics |= dialogue_metrics(dialogues, [trace.replies for trace in self.policy.traces])
        for optimizer, lr in zip(self.optimizers.values(), (config.lr, config.critic_lr), strict=False):
            optimizer.param_groups[0]["lr"] = lr * config.rate(step)
        rng = random.Random(derive(config.seed, "minibatches", step))
        totals: dict[str, float] = {}
        updates = 0
        for _ in range(config.epochs):
            order = rng.sample(range(len(experiences)), len(experiences))
            size = -(-len(order) // config.minibatches)
            for start in range(0, len(order), size):
                update, gap = self._update([experiences[i] for i in order[start : start + size]])
                # Before the first update, sampler and trainer hold the same weights: they must agree.
                metrics.setdefault("logprob_gap", gap)
                for name, value in update.items():
                    totals[name] = totals.get(name, 0.0) + value
                updates += 1
        return metrics | {name: value / updates for name, value in totals.items()}, dialogues

    def _play(self, step: int) -> tuple[list[Dialogue], list[Sample]]:
        """Play the dialogues of a step: `rollouts` of each profile, with the same user seed, one after another."""
        config = self.config
        count = config.batch // config.rollouts
        profiles = [p for p in self._draw(step, count) for _ in range(config.rollouts)]
        users = [derive(config.seed, "user", step, i // config.rollouts) for i in range(len(profiles))]
        self._training(False)
        dialogues = play(
            profiles,
            self.policy,
            self.agent,
            self.preset,
            seed=derive(config.seed, "rollout", step),
            user_seeds=users,
        )
        self.policy.release()
        return dialogues, [from_trace(trace) for trace in self.policy.traces]

    def _draw(self, step: int, count: int) -> list[Profile]:
        """The profiles of a step: generated afresh, or the next ones of the given file in a shuffled order."""
        if self._profiles is None:
            return generate(self.config.language, "train", count, derive(self.config.seed, "profiles", step))
        drawn = []
        for number in range(step * count, (step + 1) * count):
            epoch, at = divmod(number, len(self._profiles))
            order = random.Random(derive(self.config.seed, "epoch", epoch)).sample(
                range(len(self._profiles)), len(self._profiles)
            )
            drawn.append(self._profiles[order[at]])
        return drawn

    def _training(self, mode: bool) -> None:
        """Layers forget their activations only in training mode, and drop out only there."""
        self.model.train(mode)
        if self.critic is not None:
            self.critic.train(mode)

    @torch.no_grad()
    def _evaluate(self, dialogues: list[Dialogue], samples: list[Sample]) -> tuple[list[Experience], dict[str, float]]:
        """Reference log-probs, values and advantages of all tokens."""
        config = self.config
        gamma = config.gamma if config.credit == "turn" else 1.0
        rewards = [turn_rewards(dialogue, config.credit) for dialogue in dialogues]
        totals = [sum(reward) for reward in rewards]
        groups = [totals[i : i + config.rollouts] for i in range(0, len(totals), config.rollouts)]
        metrics = (
            {"zero_variance_groups": sum(max(g) - min(g) < 1e-6 for g in groups) / len(groups)}
            if config.rollouts > 1
            else {}
        )
        reference = [sample.logprobs for sample in samples]
        values = [torch.zeros(len(sample.trained)) for sample in samples]
        with self.reference.at_work() if self.reference else nullcontext():
            for part in micro_batches(samples, config.micro_tokens):
                batch = collate([samples[i] for i in part], self.model.device)
                sizes = [len(samples[i].trained) for i in part]
                for model, found in ((self.reference, reference), (self.critic, values)):
                    if model is not None:
                        for i, piece in zip(part, model(batch).cpu().split(sizes), strict=True):
                            found[i] = piece
        if self.critic is None:
            if config.credit == "terminal":
                flat = grpo_terminal([d.reward for d in dialogues], config.rollouts)
                by_turn = [[a] * len(d.turns) for a, d in zip(flat, dialogues, strict=True)]
            else:
                by_turn = grpo_turns([returns(reward, gamma) for reward in rewards], config.rollouts)
            advantages = [torch.tensor(row)[sample.turns] for row, sample in zip(by_turn, samples, strict=True)]
            targets = values
        else:
            pairs = [
                gae(*_token_rewards(sample, reward, gamma, config.lam, value))
                for sample, reward, value in zip(samples, rewards, values, strict=True)
            ]
            targets = [target for _, target in pairs]
            metrics["explained_variance"] = explained_variance(torch.cat(values), torch.cat(targets))
            sizes = [len(advantage) for advantage, _ in pairs]
            advantages = list(whiten(torch.cat([advantage for advantage, _ in pairs])).split(sizes))
        rows = zip(samples, reference, advantages, values, targets, strict=True)
        return [Experience(*row) for row in rows], metrics

    def _update(self, experiences: list[Experience]) -> tuple[dict[str, float], float]:
        """One optimizer update. Returns means over tokens, and the largest |log-prob - log-prob at sampling|."""
        config = self.config
        self._training(True)
        samples = [experience.sample for experience in experiences]
        totals: dict[str, float] = {}
        gap = 0.0
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        for part in micro_batches(samples, config.micro_tokens):
            chosen = [experiences[i] for i in part]
            batch = collate([e.sample for e in chosen], self.model.device)
            old, reference, advantages, values, targets = (
                torch.cat(column).to(self.model.device)
                for column in zip(
                    *((e.sample.logprobs, e.reference, e.advantages, e.values, e.returns) for e in chosen), strict=True
                )
            )
            # Every dialogue weighs the same: a token weighs one over the tokens of its dialogue.
            weights = torch.cat([torch.full((len(s.trained),), 1 / len(s.trained)) for s in (e.sample for e in chosen)])
            weights = weights.to(self.model.device) / len(experiences)
            hidden = hidden_states(self.model, batch)
            logprobs, spread = token_logprobs(
                self.model, hidden, batch.targets, config.temperature, config.logit_tokens
            )
            surrogate, clipped = policy_loss(logprobs, old, advantages, config.clip)
            # Cut: one token that the reference finds far likelier would else be the whole update.
            divergence = kl_k3(logprobs, reference).clamp(max=_MAX_DIVERGENCE)
            loss = (weights * (surrogate + config.kl * divergence - config.entropy * spread)).sum()
            loss.backward()
            gap = max(gap, float((logprobs - old).detach().abs().max()))
            measured = {"kl": divergence} if self.reference else {}
            terms = {"loss": surrogate, **measured, "entropy": spread, "clip_fraction": clipped}
            if self.critic is not None:
                critic_loss = value_loss(self.critic(batch), values, targets, config.value_clip)
                (weights * critic_loss).sum().backward()
                terms["value_loss"] = critic_loss
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + float((weights * term.detach()).sum())
        totals["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(learning(self.model), config.max_grad_norm))
        if self.critic is not None:
            torch.nn.utils.clip_grad_norm_(self.critic.learning(), config.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return totals, gap


def _token_rewards(
    sample: Sample, rewards: list[float], gamma: float, lam: float, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spread the rewards of turns over tokens, as `gae` takes them: at each turn's last token, discounted after it."""
    last = torch.ones(len(sample.turns), dtype=torch.bool)
    last[:-1] = sample.turns[1:] != sample.turns[:-1]
    paid = torch.where(last, torch.tensor(rewards)[sample.turns], 0.0)
    ones = torch.ones(len(sample.turns))
    return paid, values, torch.where(last, gamma, ones), torch.where(last, lam, ones)
