"""A training run as files: config, metrics, checkpoints, sample dialogues, and the trained policy.

config.json      the whole configuration, versions, the identities of the simulated users
metrics.jsonl    one line a step, evaluations included; the same command gives the same lines
timing.jsonl     seconds and tokens a second, which never are the same twice
samples.jsonl    a few transcripts every `sample_every` steps
failures.jsonl   why dialogues failed, a line a step in which some did
tensorboard/     all of them, for TensorBoard
base/            the policy that the run started from
checkpoints/     the last `keep_last`
best/            the policy with the best evaluation, with `eval_every`
policy/          the trained policy: the last, or after a collapse the last sound one
outcome.json     how the run ended
trackers.json    what it is known by to other trackers
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Protocol

import torch

from rlver.core.dialogue import Dialogue
from rlver.core.seeds import derive
from rlver.core.transcript import record
from rlver.evaluation.report import transcript_text
from rlver.train.config import TrainConfig
from rlver.train.models.loading import load_for_training
from rlver.train.runs.checkpoint import Checkpoints, damaged, save_policy
from rlver.train.runs.collapse import Collapsed, CollapseWatch, Verdict
from rlver.train.runs.interrupt import Interrupted, stop_on_signal
from rlver.train.runs.outcome import Outcome
from rlver.train.runs.profiles import profiles_of
from rlver.train.runs.run_folder import append, claimed, cut, profiles_hash, whole_folder, write_json
from rlver.train.runs.trackers import Trackers, check_trackers
from rlver.train.runs.users import users_of
from rlver.train.runs.validation import Best, Evaluator
from rlver.train.trainer import Trainer
from rlver.version import version


def run(
    config: TrainConfig,
    base: Path,
    folder: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Train `base` as `config` says, with everything in `folder`. Returns the folder of the trained policy.

    Args:
        base: folder of the policy to start from.
        resume: go on from the last checkpoint in `folder`, if there is one.
        on_step: called with (steps done, metrics) after each step.
        on_note: called with what goes on between steps, in a few words.

    Raises:
        RlverError: the folder holds another run, a checkpoint does not fit, a tracker is missing, the disk is full.
        Interrupted: Ctrl-C; the state was saved.
        Collapsed: the policy collapsed; the state was saved.
    """
    check_trackers(config.trackers)
    with claimed(folder, config, resume):
        return _Run(config, base, folder, resume, on_step or (lambda *_: None), on_note or (lambda _: None)).go()


class Stateful(Protocol):
    """What a checkpoint keeps besides weights. The state goes through JSON."""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""


class _Run:
    """A run under way."""

    def __init__(
        self,
        config: TrainConfig,
        base: Path,
        folder: Path,
        resume: bool,
        on_step: Callable[[int, dict[str, float]], None],
        on_note: Callable[[str], None],
    ) -> None:
        torch.manual_seed(derive(config.seed, "torch"))
        self.config, self.folder, self._on_step, self._on_note = config, folder, on_step, on_note
        profiles = profiles_of(config)
        self.evaluator = Evaluator(config) if config.eval_every else None
        start_from = folder / "base"
        source = start_from if resume and start_from.is_dir() else base
        model, self.tokenizer = load_for_training(source, config)
        users = users_of(config)
        self.identity = " + ".join(user.identity for user in users.values())
        self.trainer = Trainer(config, model, self.tokenizer, users, profiles, folder / "weights")
        # Saved folders end a reply where it ends here: the template's closing token may be no end to the model.
        model.generation_config.eos_token_id = sorted(self.trainer.policy.chat.stops)
        self.facts = self._facts()
        versions = {"rlver": version()} | {name: installed(name) for name in ("torch", "transformers")}
        evaluation = {"evaluation": self.evaluator.facts} if self.evaluator else {}
        description = {"config": config.model_dump(), "versions": versions, **self.facts, **evaluation}
        # First of all: without it the folder is no run, and there is nothing to go on with.
        write_json(folder / "config.json", description | {"profiles_hash": profiles_hash(config)})
        if source is base:
            save_policy(start_from, model, self.tokenizer, self.facts | {"algo": None})

        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.watch = CollapseWatch(config, reward=config.curriculum == "none")
        self.best = Best(config.user)
        self.stateful: dict[str, Stateful] = {
            "best": self.best,
            "collapse": self.watch,
            "curriculum": self.trainer.curriculum,
        }
        self.done = self._restore() if resume else 0
        for name in ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "failures.jsonl"):
            cut(folder / name, self.done)
        self.trackers = Trackers(config.trackers, folder, description["config"], self.done)

    def go(self) -> Path:
        """Do the steps that are left."""
        stop = self.config.stop_on_collapse
        try:
            with stop_on_signal() as asked_to_stop:
                for number in range(self.done + 1, self.config.steps + 1):
                    if stop and self.watch.verdict:
                        break
                    metrics = self._step(number)
                    if self._due(number, self.config.save_every) or asked_to_stop() or (stop and self.watch.verdict):
                        self._save()
                    self._on_step(number, metrics)
                    if asked_to_stop() and number < self.config.steps:
                        if self.checkpoints.latest() != self.checkpoints.of(number):
                            self._save()
                        raise Interrupted(
                            f"stopped after step {number}; state saved in {self.folder}. Go on with --resume."
                        )
        finally:
            self.trackers.close()
        if stop and self.watch.verdict:
            raise Collapsed(self._fall_back(self.watch.verdict))
        self._save_policy("policy")
        self._outcome("last").write(self.folder)
        return self.folder / "policy"

    def _step(self, number: int) -> dict[str, float]:
        """Do step `number` (from 1) and write down what it brought."""
        torch.manual_seed(derive(self.config.seed, "torch", number))  # for models with dropout
        began = time.perf_counter()
        metrics, dialogues = self.trainer.step(number - 1)
        seconds = time.perf_counter() - began
        timing = {"seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        if self.evaluator and self._due(number, self.config.eval_every):
            began = time.perf_counter()
            self.trainer.rest()
            metrics |= self.evaluator.run(self.trainer.policy, lambda text: self._on_note(f"evaluating: {text}"))
            timing["evaluation_seconds"] = time.perf_counter() - began
        append(self.folder / "metrics.jsonl", {"step": number, **metrics})
        append(self.folder / "timing.jsonl", {"step": number, **timing})
        if reasons := Counter(self.trainer.failures):
            told = {"step": number, "dialogues": reasons.total(), "reasons": dict(reasons.most_common(5))}
            append(self.folder / "failures.jsonl", told)
        self.trackers.log(number, metrics | timing)
        if self._due(number, self.config.sample_every):
            self._sample(number, dialogues)
        self.done = number
        self.watch.take(metrics)
        if self.best.take(number, metrics) and self.config.keep_best:
            self._save_policy("best")
        return metrics

    def _due(self, number: int, every: int) -> bool:
        return every > 0 and (number % every == 0 or number == self.config.steps)

    def _sample(self, number: int, dialogues: Sequence[Dialogue]) -> None:
        """Show up to four dialogues of a step, of different profiles."""
        for i, dialogue in enumerate(dialogues[:: max(1, len(dialogues) // 4)][:4]):
            transcript = record(
                dialogue,
                policy=f"step-{number}",
                user=self.identity,
                prompt=self.facts["prompt"],
                seed=self.config.seed,
            )
            append(self.folder / "samples.jsonl", {"step": number, **transcript.model_dump(mode="json")})
            self.trackers.text(number, f"samples/{i + 1}", transcript_text(transcript, dialogue.preset.start).plain)

    def _save(self) -> None:
        trainer = self.trainer
        state = {name: thing.state_dict() for name, thing in self.stateful.items()}
        self.checkpoints.save(
            self.done, trainer.model, self.tokenizer, self._note(), trainer.critic, trainer.optimizers, state
        )
        self.checkpoints.prune(self.config.keep_last, self.watch.memory if self.config.stop_on_collapse else 0)

    def _restore(self) -> int:
        """Go on from the last checkpoint; returns the steps that it has behind it."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0
        trainer = self.trainer
        state = self.checkpoints.load(latest, trainer.model, trainer.critic, trainer.optimizers)
        for name, thing in self.stateful.items():
            try:
                if name in state:  # a run of an earlier version has none
                    thing.load_state_dict(state[name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged(latest, f"state of {name}: {error!r}") from None
        return int(state["step"])

    def _fall_back(self, verdict: Verdict) -> str:
        """Make the last sound policy the result, and say so."""
        name, why = self._sound(verdict.healthy)
        with whole_folder(self.folder / "policy") as part:
            shutil.copytree(self.folder / name, part, dirs_exist_ok=True)
        self._outcome(name, verdict.sentence).write(self.folder)
        return (
            f"The policy collapsed: {verdict.sentence}; the state is saved in {self.folder}, and policy/ is that of "
            f"{name} ({why}). Try a lower lr (now {self.config.lr:g}) or a higher kl (now {self.config.kl:g}); "
            "--resume --set stop_on_collapse=false goes on all the same."
        )

    def _sound(self, healthy: int) -> tuple[str, str]:
        """The folder with the last policy that is sound, and what it is; `healthy` is the last sound step."""
        if self.best.step and (self.folder / "best").is_dir():
            return "best", f"step {self.best.step}, held-out score {self.best.score}"
        if found := self.checkpoints.before(healthy + 1):
            return f"checkpoints/{found.name}/policy", "the last from before it"
        if healthy >= self.config.save_every and (found := self.checkpoints.before(self.done)):
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
        save_policy(self.folder / name, self.trainer.model, self.tokenizer, self._note())

    def _note(self) -> dict[str, Any]:
        return self.facts | {"step": self.done}

    def _facts(self) -> dict[str, Any]:
        """What a policy's folder says of itself."""
        config = self.config
        return {
            "version": version(),
            "think": config.think,
            "language": config.language,
            "user": self.identity,
            "preset": config.preset,
            "prompt": self.trainer.policy.prompt_hash,
            "algo": config.algo,
            "credit": config.credit,
            "seed": config.seed,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
