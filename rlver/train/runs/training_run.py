"""A training run as files: config, metrics, checkpoints, sample dialogues, and the trained policy.

config.json      all settings, versions, the identities of the simulated users
metrics.jsonl    one line per step, evaluations included; the same command writes the same lines
timing.jsonl     seconds and tokens per second of each step, which differ from run to run
samples.jsonl    a few transcripts every `sample_every` steps
failures.jsonl   why dialogues failed, one line per step in which some did
tensorboard/     metrics, timing and sample dialogues for TensorBoard
base/            the policy that the run started from
checkpoints/     the last `keep_last` checkpoints
best/            the policy with the best evaluation, with `eval_every`
policy/          the trained policy: the last one, or after a collapse the last healthy one
outcome.json     how the run ended
trackers.json    the run's id in other trackers
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Protocol

import torch

from rlver.core.dialogue import Dialogue
from rlver.core.interfaces import User, UserType
from rlver.core.seeds import derive
from rlver.core.transcript import record
from rlver.evaluation.report import transcript_text
from rlver.train.config import TrainConfig
from rlver.train.credit import Reward, reward_name
from rlver.train.models.loading import load_for_training
from rlver.train.runs.checkpoint import Checkpoints, damaged, save_policy
from rlver.train.runs.collapse import Collapse, Collapsed, CollapseWatch
from rlver.train.runs.interrupt import Interrupted, stop_on_signal
from rlver.train.runs.outcome import Outcome
from rlver.train.runs.participants import training_profiles, training_users
from rlver.train.runs.run_folder import append, atomic_folder, claimed, profiles_hash, truncate, write_json
from rlver.train.runs.trackers import Trackers, check_trackers
from rlver.train.runs.validation import Best, Evaluator
from rlver.train.trainer import Trainer
from rlver.version import source, version


def run(
    config: TrainConfig,
    base: Path,
    folder: Path,
    *,
    resume: bool = False,
    users: User | Mapping[UserType, User] | None = None,
    reward: Reward | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Train the policy `base` as `config` says, with all files in `folder`. Returns the folder of the trained policy.

    Args:
        base: folder of the policy to start from.
        resume: continue from the last checkpoint in `folder`, if there is one.
        users: simulated users of your own: one for all, or one per user type. By default those that `config` names.
        reward: a reward of your own, which replaces the emotion; see `turn_rewards`.
        on_step: called with (steps done, metrics) after each step.
        on_note: called with a few words about what happens between steps.

    Raises:
        RlverError: the folder holds another run, a checkpoint does not fit, a tracker is missing, or the disk is full.
        Interrupted: the run was stopped with Ctrl-C or SIGTERM; the state was saved.
        Collapsed: the policy collapsed; the state was saved.
    """
    check_trackers(config.trackers)
    with claimed(folder, config, resume, reward_name(reward) if reward else None):
        users = training_users(config) if users is None else users
        started = _Run(config, base, folder, resume, users, reward, on_step or _ignore, on_note or _ignore)
        return started.finish()


class Stateful(Protocol):
    """What a checkpoint stores besides weights. The state consists of JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""


class _Run:
    """A run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        base: Path,
        folder: Path,
        resume: bool,
        users: User | Mapping[UserType, User],
        reward: Reward | None,
        on_step: Callable[[int, dict[str, float]], None],
        on_note: Callable[[str], None],
    ) -> None:
        torch.manual_seed(derive(config.seed, "torch"))
        self.config, self.folder, self._on_step, self._on_note = config, folder, on_step, on_note
        profiles = training_profiles(config)
        self.evaluator = Evaluator(config) if config.eval_every else None
        saved_base = folder / "base"
        source = saved_base if resume and saved_base.is_dir() else base
        model, self.tokenizer = load_for_training(source, config)
        self.trainer = Trainer(config, model, self.tokenizer, users, profiles, folder / "weights", reward)
        self.identity = " + ".join(dict.fromkeys(user.identity for user in self.trainer.users.values()))
        # A saved policy must end its replies where it did here, even if the model's own settings say otherwise.
        model.generation_config.eos_token_id = sorted(self.trainer.policy.chat.stops)
        self.policy_facts = self._policy_facts()
        description = self._description(reward)
        # Written first: a folder without it holds no run, and cannot be resumed.
        write_json(folder / "config.json", description)
        if source is base:
            save_policy(saved_base, model, self.tokenizer, self.policy_facts | {"algo": None})

        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.watch = CollapseWatch(config, reward=config.curriculum == "none" and reward is None)
        self.best = Best(config.user_type)
        self.stateful: dict[str, Stateful] = {
            "best": self.best,
            "collapse": self.watch,
            "curriculum": self.trainer.curriculum,
        }
        self.done = self._restore() if resume else 0
        for name in ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "failures.jsonl"):
            truncate(folder / name, self.done)
        self.trackers = Trackers(config.trackers, folder, description["config"], self.done)

    def finish(self) -> Path:
        """Do the remaining steps. Returns the folder of the trained policy."""
        stop_on_collapse = self.config.stop_on_collapse
        try:
            with stop_on_signal() as stop_requested:
                for number in range(self.done + 1, self.config.steps + 1):
                    if stop_on_collapse and self.watch.collapse:
                        break
                    metrics = self._step(number)
                    collapsed = stop_on_collapse and self.watch.collapse
                    if self._is_due(number, self.config.save_every) or stop_requested() or collapsed:
                        self._save_checkpoint()
                    self._on_step(number, metrics)
                    if stop_requested() and number < self.config.steps:
                        if self.checkpoints.latest() != self.checkpoints.path(number):
                            self._save_checkpoint()
                        raise Interrupted(
                            f"stopped after step {number}; state saved in {self.folder}. Continue it with --resume."
                        )
        finally:
            self.trackers.close()
        if stop_on_collapse and self.watch.collapse:
            raise Collapsed(self._restore_healthy_policy(self.watch.collapse))
        self._save_policy("policy")
        self._outcome("last").write(self.folder)
        return self.folder / "policy"

    def _step(self, number: int) -> dict[str, float]:
        """Do step `number` (from 1) and record its results."""
        torch.manual_seed(derive(self.config.seed, "torch", number))  # for models with dropout
        began = time.perf_counter()
        metrics, dialogues = self.trainer.step(number - 1)
        seconds = time.perf_counter() - began
        timing = {"seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        timing |= {f"{phase}_seconds": value for phase, value in self.trainer.seconds.items()}
        if self.evaluator and self._is_due(number, self.config.eval_every):
            began = time.perf_counter()
            self.trainer.sync_weights()
            metrics |= self.evaluator.run(self.trainer.policy, lambda text: self._on_note(f"evaluating: {text}"))
            timing["evaluation_seconds"] = time.perf_counter() - began
        append(self.folder / "metrics.jsonl", {"step": number, **metrics})
        append(self.folder / "timing.jsonl", {"step": number, **timing})
        if reasons := Counter(self.trainer.failures):
            failures = {"step": number, "dialogues": reasons.total(), "reasons": dict(reasons.most_common(5))}
            append(self.folder / "failures.jsonl", failures)
        self.trackers.log(number, metrics | timing)
        if self._is_due(number, self.config.sample_every):
            self._write_samples(number, dialogues)
        self.done = number
        self.watch.observe(metrics)
        if self.best.observe(number, metrics) and self.config.keep_best:
            self._save_policy("best")
        return metrics

    def _is_due(self, number: int, every: int) -> bool:
        return every > 0 and (number % every == 0 or number == self.config.steps)

    def _write_samples(self, number: int, dialogues: Sequence[Dialogue]) -> None:
        """Record up to four dialogues of a step, spread over its profiles."""
        for i, dialogue in enumerate(dialogues[:: max(1, len(dialogues) // 4)][:4]):
            transcript = record(
                dialogue,
                policy=f"step-{number}",
                user=self.identity,
                prompt=self.policy_facts["prompt"],
                seed=self.config.seed,
            )
            append(self.folder / "samples.jsonl", {"step": number, **transcript.model_dump(mode="json")})
            self.trackers.text(number, f"samples/{i + 1}", transcript_text(transcript, dialogue.preset.start).plain)

    def _save_checkpoint(self) -> None:
        trainer = self.trainer
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        facts = self.policy_facts | {"step": self.done}
        self.checkpoints.save(
            self.done, trainer.model, self.tokenizer, facts, trainer.critic, trainer.optimizers, state
        )
        self.checkpoints.prune(self.config.keep_last, self.watch.memory if self.config.stop_on_collapse else 0)

    def _restore(self) -> int:
        """Restore the last checkpoint. Returns the number of steps that are done."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0
        trainer = self.trainer
        state = self.checkpoints.load(latest, trainer.model, trainer.critic, trainer.optimizers)
        for name, part in self.stateful.items():
            try:
                if name in state:  # older runs lack newer parts
                    part.load_state_dict(state[name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged(latest, f"state of {name}: {error!r}") from None
        return int(state["step"])

    def _restore_healthy_policy(self, collapse: Collapse) -> str:
        """Make the last healthy policy the result of the run. Returns a message that says so."""
        name, description = self._healthy_policy(collapse.healthy)
        with atomic_folder(self.folder / "policy") as part:
            shutil.copytree(self.folder / name, part, dirs_exist_ok=True)
        self._outcome(name, collapse.sentence).write(self.folder)
        return (
            f"The policy collapsed: {collapse.sentence}; the state is saved in {self.folder}, and policy/ is that of "
            f"{name} ({description}). Try a lower lr (now {self.config.lr:g}) or a higher kl (now {self.config.kl:g}); "
            "--resume --set stop_on_collapse=false continues anyway."
        )

    def _healthy_policy(self, healthy: int) -> tuple[str, str]:
        """The folder of the last healthy policy, and what it is.

        Args:
            healthy: the last step whose weights showed no sign of the collapse.
        """
        if self.best.step and (self.folder / "best").is_dir():
            return "best", f"step {self.best.step}, held-out score {self.best.score}"
        if checkpoint := self.checkpoints.before(healthy + 1):
            return f"checkpoints/{checkpoint.name}/policy", "the last from before it"
        if healthy >= self.config.save_every and self.checkpoints.before(self.done):
            return f"checkpoints/{self.checkpoints.all()[0].name}/policy", "the oldest that is left"
        return "base", "nothing was saved before it"

    def _outcome(self, source: str, collapse: str = "") -> Outcome:
        best = self.best
        return Outcome(
            steps=self.done,
            source=source,
            collapse=collapse,
            score=best.last if best.last_step == self.done else None,
            best_step=best.step,
            best=best.score if best.step else None,
            tracker_failures=dict(self.trackers.failures),
        )

    def _save_policy(self, name: str) -> None:
        facts = self.policy_facts | {"step": self.done}
        save_policy(self.folder / name, self.trainer.model, self.tokenizer, facts)

    def _description(self, reward: Reward | None) -> dict[str, Any]:
        """What config.json says about the run."""
        versions = source() | {name: installed(name) for name in ("torch", "transformers")}
        return {
            "config": self.config.model_dump(mode="json"),
            "versions": versions,
            **self.policy_facts,
            **({"evaluation": self.evaluator.facts} if self.evaluator else {}),
            **({"reward": reward_name(reward)} if reward else {}),
            "profiles_hash": profiles_hash(self.config),
        }

    def _policy_facts(self) -> dict[str, Any]:
        """What `rlver.json` in a policy folder says about its policy."""
        config = self.config
        return {
            "version": version(),
            "think": config.think,
            "language": config.language,
            "user": self.identity,
            "preset": config.rules.name,
            "prompt": self.trainer.policy.prompt_hash,
            "algo": config.algo,
            "credit": config.credit,
            "seed": config.seed,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }


def _ignore(*_: object) -> None:
    """The default of callbacks."""
