"""The trainer: sample dialogues, ask the users how they felt, make what helped more likely.

One step, top to bottom: meet users -> play a batch of dialogues -> a sample of exact token ids for each -> rewards by
turn -> advantages by token -> a few clipped updates. It differs from the textbook in three points. Rewards can be given
where they were earned (`credit`): a terminal reward alone teaches a small policy to stop being generic and then
stalls. Every dialogue weighs the same in the loss, however many turns or tokens it has (`weighting` says otherwise).
And whatever is drawn in a step is drawn from (seed, step), so that a run can be stopped anywhere and resumed to the
same numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.dialogue import Dialogue
from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.inference.cores import Cores
from rlver.inference.engines.load import LOCAL, load_engine
from rlver.inference.exactness import check_dialogue
from rlver.policies.local import LocalPolicy
from rlver.rollout import closing, run
from rlver.train.advantages.estimate import estimate
from rlver.train.batch import Batch, Sample, collate, from_dialogue, hidden_states, micro_batches
from rlver.train.config import TrainConfig
from rlver.train.credit import turn_rewards
from rlver.train.curriculum import Curriculum
from rlver.train.groups import Group, play_groups
from rlver.train.losses.imitation import imitation_loss, imitation_weights
from rlver.train.losses.kl import kl_divergence
from rlver.train.losses.off_policy import importance
from rlver.train.losses.policy import policy_loss
from rlver.train.losses.value import value_loss
from rlver.train.losses.weighting import token_weights
from rlver.train.metrics import dialogue_metrics
from rlver.train.models.critic import explained_variance, make_critic
from rlver.train.models.loading import learning
from rlver.train.models.logits import logprobs_and_entropies, token_logprobs
from rlver.train.models.optimizer import make_optimizer
from rlver.train.models.reference import Reference
from rlver.train.parallel import Backward, learn

_MAX_DIVERGENCE = 10.0
"""Largest estimate of the divergence at one token, in nats; k3 grows with the ratio of the probabilities itself."""


@dataclass
class Experience:
    """One dialogue, ready to learn from. Tensors are (T,): one entry per sampled token."""

    sample: Sample
    old: Tensor
    """Log-probs before the first update: the sampler's, or the trainer's where the sampler is corrected for."""
    reference: Tensor
    """Log-probs under the starting policy; where nothing is held to it (`kl: 0`), those before the first update."""
    importance: Tensor
    """Weight that corrects for the sampler; ones where it is taken at its word."""
    advantages: Tensor
    values: Tensor
    """The critic's values at sampling; zeros without a critic."""
    returns: Tensor
    """The critic's targets."""
    imitation: Tensor
    """Weight in the imitation of good dialogues."""


class Trainer:
    """Trains a causal language model in place; `step` is the algorithm."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        agents: User | Mapping[UserType, User],
        profiles: Sequence[Profile] | None = None,
        weights: Path | None = None,
    ) -> None:
        """Make ready to train.

        Args:
            agents: the simulated user, or one for each type of user that the curriculum draws.
            profiles: those to train on; by default they are generated from the training stories.
            weights: folder through which a sampling server gets the weights.
        """
        self.config = config
        self.model = model
        self.agents = agents if isinstance(agents, Mapping) else {config.user: agents}
        self.preset = get_preset(config.preset)
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
        self._logits = config.temperature, config.logit_tokens
        self.reference = Reference(model, *self._logits, config.offload_reference) if config.kl else None
        self.critic = make_critic(model) if config.algo == "ppo" else None
        self.optimizers = {"optimizer": make_optimizer(learning(model), config.lr, offload=config.offload_optimizer)}
        if self.critic is not None:
            self.optimizers["critic_optimizer"] = make_optimizer(
                self.critic.learning(), config.critic_lr, offload=config.offload_optimizer
            )
        self.curriculum = Curriculum(config, profiles)
        self._longest = self.preset.replies * config.max_tokens
        self._checked = False
        """Whether the token ids of a first step were checked against its texts."""
        self.failures: list[str] = []
        """Why dialogues of the last step failed."""

    def step(self, step: int) -> tuple[dict[str, float], list[Dialogue]]:
        """Do step number `step` (from 0). Returns its metrics and the dialogues that it learned from."""
        config = self.config
        groups, metrics = self._play(step)
        dialogues = [dialogue for group in groups for dialogue in group.dialogues]
        if not self._checked:
            for dialogue in dialogues:
                check_dialogue(self.policy.chat, dialogue)
            self._checked = True
        experiences, found = self._evaluate(dialogues, [from_dialogue(dialogue) for dialogue in dialogues])
        metrics |= found | dialogue_metrics(dialogues)
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

    def rest(self) -> None:
        """Make the policy ready to talk: no dropout, and whoever samples has the weights as they are now."""
        self._training(False)
        run(closing(self.policy.update_weights(), self.policy))

    def _play(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Meet users and play the dialogues of a step, again until the batch is full if flat groups are refilled."""
        config = self.config
        groups: list[Group] = []
        flat: list[Group] = []
        wanted, met, failed = config.batch // config.rollouts, 0, 0
        self.failures = []
        self.rest()
        for refill in range(1 + (config.refills if config.zero_variance == "refill" else 0)):
            meetings = self.curriculum.draw(step, wanted - len(groups), refill)
            place = (step, refill) if refill else (step,)
            played, failures = play_groups(
                meetings, config.rollouts, self.policy, self.agents, self.preset, config.slots, config.seed, place
            )
            self.curriculum.observe([(group.meeting, group.dialogues) for group in played])
            self.failures += failures
            met += len(meetings)
            failed += config.rollouts * (len(meetings) - len(played))
            alike = [group for group in played if not group.varies(config.credit)]
            flat += alike
            groups += [group for group in played if config.zero_variance == "keep" or group not in alike]
            if len(groups) == wanted:
                break
        if not groups and not flat:
            raise RlverError(f"nothing of step {step + 1} can be learned from: a dialogue failed ({self.failures[0]}).")
        # With those of their groups, which have nobody to be compared with any more.
        metrics = {"failed": float(failed)} if failed else {}
        if config.rollouts > 1:
            metrics["zero_variance_groups"] = len(flat) / met
        # Where nobody teaches anything, the divergence is held down at least.
        return groups or flat, metrics | self.curriculum.metrics()

    @torch.no_grad()
    def _evaluate(self, dialogues: list[Dialogue], samples: list[Sample]) -> tuple[list[Experience], dict[str, float]]:
        """Log-probs, values and advantages of all tokens before the first update."""
        config = self.config
        sizes = [len(sample.trained) for sample in samples]
        old, importances = [sample.logprobs for sample in samples], [torch.ones(size) for size in sizes]
        values = [torch.zeros(size) for size in sizes]
        reference = old
        if self.reference is not None:
            with self.reference.at_work():
                reference = self._over(samples, self.reference)
        if config.importance_cap is not None:
            old = self._over(samples, self._logprobs)
            pairs = zip(old, samples, strict=True)
            importances = [importance(p, sample.logprobs, config.importance_cap) for p, sample in pairs]
        if self.critic is not None:
            values = self._over(samples, self.critic)
        penalties = None
        if config.kl_in == "reward":
            penalties = [config.kl * self._divergence(*pair) for pair in zip(old, reference, strict=True)]
        rewards = [turn_rewards(dialogue, config.credit) for dialogue in dialogues]
        advantages, targets = estimate(config, [sample.turns for sample in samples], rewards, values, penalties)
        copying = imitation_weights(torch.tensor([d.reward for d in dialogues]), config.imitation_temperature)
        imitations = [weight.expand(size) for weight, size in zip(copying, sizes, strict=True)]
        metrics = {"tokens": float(sum(sizes))}
        if self.critic is not None:
            metrics["explained_variance"] = explained_variance(torch.cat(values), torch.cat(targets))
        if config.importance_cap is not None:
            metrics["importance"] = float(torch.cat(importances).mean())
        rows = zip(samples, old, reference, importances, advantages, values, targets, imitations, strict=True)
        return [Experience(*row) for row in rows], metrics

    def _update(self, experiences: list[Experience]) -> tuple[dict[str, float], float]:
        """One optimizer update. Returns means over tokens, and the largest |log-prob - log-prob at sampling|."""
        config = self.config
        self._training(True)
        samples = [experience.sample for experience in experiences]
        weights = token_weights([sample.turns for sample in samples], config.weighting, self._longest)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

        def work(part: list[int], backward: Backward) -> tuple[dict[str, float], float]:
            return self._learn([experiences[i] for i in part], torch.cat([weights[i] for i in part]), backward)

        learned = [*learning(self.model), *(self.critic.learning() if self.critic is not None else ())]
        totals: dict[str, float] = {}
        gaps = []
        for terms, gap in learn(self.cores, work, micro_batches(samples, config.micro_tokens), learned):
            gaps.append(gap)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term
        totals["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(learning(self.model), config.max_grad_norm))
        if self.critic is not None:
            torch.nn.utils.clip_grad_norm_(self.critic.learning(), config.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return totals, max(gaps)

    def _learn(
        self, experiences: list[Experience], weight: Tensor, backward: Backward
    ) -> tuple[dict[str, float], float]:
        """The losses of a micro-batch, whose tokens weigh `weight` (N,): weighted sums, and the gap as above."""
        config, device = self.config, self.model.device
        batch = collate([e.sample for e in experiences], device)
        weight = weight.to(device)

        def column(of: Callable[[Experience], Tensor]) -> Tensor:
            return torch.cat([of(e) for e in experiences]).to(device)

        hidden = hidden_states(self.model, batch)
        logprobs, spread = logprobs_and_entropies(
            self.model, hidden, batch.targets, *self._logits, spread=config.entropy > 0
        )
        surrogate, clipped = policy_loss(
            logprobs,
            column(lambda e: e.old),
            column(lambda e: e.advantages),
            config.clip,
            config.clip_high,
            config.dual_clip,
        )
        surrogate = column(lambda e: e.importance) * surrogate
        divergence = self._divergence(logprobs, column(lambda e: e.reference))
        loss = surrogate - config.entropy * spread
        terms = {"loss": surrogate, "entropy": spread, "clip_fraction": clipped}
        if self.reference is not None:
            terms["kl"] = divergence
        if config.kl_in == "loss":
            loss = loss + config.kl * divergence
        if config.imitation:
            terms["imitation"] = imitation_loss(logprobs, column(lambda e: e.imitation))
            loss = loss + config.imitation * terms["imitation"]
        backward((weight * loss).sum())
        gap = float((logprobs - column(lambda e: e.sample.logprobs)).detach().abs().max())
        if self.critic is not None:
            terms["value_loss"] = value_loss(
                self.critic(batch), column(lambda e: e.values), column(lambda e: e.returns), config.value_clip
            )
            backward((weight * terms["value_loss"]).sum())
        return {name: float((weight * term.detach()).sum()) for name, term in terms.items()}, gap

    def _divergence(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """(N,) Cut: one token that the reference finds far likelier would else be the whole update."""
        estimate = kl_divergence(logprobs, reference, self.config.kl_estimator)
        return estimate.clamp(-_MAX_DIVERGENCE, _MAX_DIVERGENCE)

    def _logprobs(self, batch: Batch) -> Tensor:
        """(N,) log-probs of the trained tokens at the temperature of sampling."""
        return token_logprobs(self.model, hidden_states(self.model, batch), batch.targets, *self._logits)

    def _training(self, mode: bool) -> None:
        """Layers forget their activations only in training mode, and drop out only there."""
        self.model.train(mode)
        if self.critic is not None:
            self.critic.train(mode)

    def _over(self, samples: Sequence[Sample], ask: Callable[[Batch], Tensor]) -> list[Tensor]:
        """What `ask` says of each batch (N,), sample by sample (T,)."""
        parts = list(micro_batches(samples, self.config.micro_tokens))

        def work(part: list[int]) -> Sequence[Tensor]:
            batch = collate([samples[i] for i in part], self.model.device)
            return ask(batch).cpu().split([len(samples[i].trained) for i in part])

        found: list[Tensor] = [torch.empty(0)] * len(samples)
        for part, pieces in zip(parts, self.cores.map(work, parts), strict=True):
            for i, piece in zip(part, pieces, strict=True):
                found[i] = piece
        return found
