"""A training run as files: config, metrics, checkpoints, sample dialogues, and the trained policy.

config.json      the whole configuration, versions and the identity of the simulated user
metrics.jsonl    one line a step; the same command gives the same lines
timing.jsonl     seconds and tokens a second, which never are the same twice
tensorboard/     both, for TensorBoard
samples.jsonl    a few transcripts every ten steps
base/            the policy that the run started from
checkpoints/     the last two
policy/          the trained policy
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from rlver.agents import EmbeddedAgent
from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.profile import Profile, read_profiles
from rlver.core.seeds import derive
from rlver.core.transcript import record
from rlver.train.runs.checkpoint import Checkpoints, save_policy
from rlver.train.config import TrainConfig
from rlver.train.models.loading import load_for_training
from rlver.train.trainer import Trainer
from rlver.version import version

_SAMPLE_EVERY = 10


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


def run(
    config: TrainConfig,
    base: Path,
    folder: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train `base` as `config` says, with everything in `folder`. Returns the folder of the trained policy.

    Args:
        base: folder of the policy to start from.
        resume: go on from the last checkpoint in `folder`, if there is one.
        on_step: called with (steps done, metrics) after each step.

    Raises:
        RlverError: the folder holds another run, or a checkpoint does not fit.
        Interrupted: Ctrl-C; the state was saved.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(derive(config.seed, "torch"))
    checkpoints = Checkpoints(folder / "checkpoints")
    _claim(folder, config, resume)
    start_from = folder / "base"
    source = start_from if resume and start_from.is_dir() else base
    model, tokenizer = load_for_training(source, config)
    agent = EmbeddedAgent(config.language, config.user, "train")
    profiles = profiles_of(config)
    facts: dict[str, Any] = {
        "version": version(),
        "think": config.think,
        "language": config.language,
        "user": agent.identity,
        "preset": config.preset,
        "prompt": None,
        "algo": config.algo,
        "credit": config.credit,
        "seed": config.seed,
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
    }
    trainer = Trainer(config, model, tokenizer, agent, profiles)
    facts["prompt"] = trainer.policy.prompt_hash
    if source is base:
        save_policy(start_from, model, tokenizer, facts | {"algo": None})
    versions = {"rlver": version()} | {name: installed(name) for name in ("torch", "transformers")}
    _write_json(folder / "config.json", {"config": config.model_dump(), "versions": versions, **facts})

    done = 0
    latest = checkpoints.latest() if resume else None
    if latest is not None:
        done = checkpoints.load(latest, model, trainer.critic, trainer.optimizers)
    for name in ("metrics.jsonl", "timing.jsonl", "samples.jsonl"):
        _cut(folder / name, done)
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def save(step: int) -> None:
        checkpoints.save(step, model, tokenizer, facts, trainer.critic, trainer.optimizers)

    try:
        with _stop_on_signal() as asked_to_stop:
            for step in range(done, config.steps):
                began = time.perf_counter()
                metrics, dialogues = trainer.step(step)
                seconds = time.perf_counter() - began
                number = step + 1
                _append(folder / "metrics.jsonl", {"step": number, **metrics})
                tokens = sum(len(reply.ids) for trace in trainer.policy.traces for reply in trace.replies)
                timing = {"seconds": seconds, "tokens_per_second": tokens / seconds}
                _append(folder / "timing.jsonl", {"step": number, **timing})
                for name, value in (metrics | timing).items():
                    writer.add_scalar(name, value, number)
                if number % _SAMPLE_EVERY == 0 or number == config.steps:
                    for dialogue in dialogues[:: max(1, len(dialogues) // 4)][:4]:
                        transcript = record(
                            dialogue,
                            policy=f"step-{number}",
                            user=agent.identity,
                            prompt=facts["prompt"],
                            seed=config.seed,
                        )
                        _append(folder / "samples.jsonl", {"step": number, **transcript.model_dump(mode="json")})
                if number % config.save_every == 0 or number == config.steps or asked_to_stop():
                    save(number)
                if on_step:
                    on_step(number, metrics)
                if asked_to_stop() and number < config.steps:
                    if checkpoints.latest() != checkpoints.of(number):
                        save(number)
                    raise Interrupted(f"stopped after step {number}; state saved in {folder}. Go on with --resume.")
    finally:
        writer.close()
    save_policy(folder / "policy", model, tokenizer, facts)
    return folder / "policy"


def profiles_of(config: TrainConfig) -> list[Profile] | None:
    """The profiles of the file that the run trains on; None if they are generated.

    Raises:
        RlverError: the file is broken, or its profiles are in another language.
    """
    if config.profiles is None:
        return None
    profiles = read_profiles(Path(config.profiles))
    if any(profile.language != config.language for profile in profiles):
        raise RlverError(f"{config.profiles}: holds profiles that are not in {config.language!r}; set --language.")
    return profiles


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was started with. Raises RlverError if it cannot be read."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlverError(f"{file}: this is no configuration of a run ({error}).") from None
    if not isinstance(config, dict):
        raise RlverError(f"{file}: this is no configuration of a run.")
    return config


def _claim(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Make the folder ours: a new one, or one that holds this very run."""
    file = folder / "config.json"
    if file.is_file():
        if not resume:
            raise RlverError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out.")
        stored = stored_config(folder)
        current = json.loads(config.model_dump_json())
        changed = [
            f"{key}: {stored.get(key)!r} -> {current[key]!r}" for key in current if stored.get(key) != current[key]
        ]
        changed = [line for line in changed if not line.startswith("steps:")]
        if changed:
            raise RlverError(f"{folder}: the run was started with another configuration ({'; '.join(changed)}).")
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets the step in hand be finished and saved; the second stops at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _append(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _cut(file: Path, steps: int) -> None:
    """Drop the lines after step `steps`: what follows will be done again. A line cut off by a crash goes too."""
    if not file.is_file():
        return
    kept = []
    try:
        for _, record in read_objects(file):
            if record["step"] <= steps:
                kept.append(json.dumps(record, ensure_ascii=False) + "\n")
    except RlverError:
        pass  # only the last line can be broken, and it is to be done again
    file.write_text("".join(kept), encoding="utf-8")


def _write_json(file: Path, record: dict[str, Any]) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
