"""The trainer on models of a few thousand weights, and whole runs with their files: killed, resumed, misused."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import rlver.train.run as run_module
import rlver.train.trainer as trainer_module
from rlver.agents.base import Opening
from rlver.cli.main import main
from rlver.core.dialogue import Dialogue, Reaction, StopReason
from rlver.core.errors import RlverError
from rlver.core.profile import Profile, write_profiles
from rlver.core.transcript import Transcript
from rlver.policies.chat import ChatFormat
from rlver.policies.local import Trace
from rlver.policies.prompts import system_prompt
from rlver.stories.generate import generate
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.config import TrainConfig, load_config
from rlver.train.rewards import returns, turn_rewards
from rlver.train.run import Interrupted, run
from rlver.train.samples import from_trace
from rlver.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
LINES = ["I see.", "It is not your fault.", "You did so well!", "Why did they do it?", "Calm down."]
SENTENCES = ["My sister laughed and the kettle broke.", "Nobody asked me why I did not sleep.", "你愿意说说吗？"]

algos = pytest.mark.parametrize("algo", ["grpo", "ppo"])
modes = pytest.mark.parametrize("think", [False, True], ids=["plain", "think"])


# ---------------------------------------------------------------- models, users and configs of our own


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of a few hundred pieces, to which every word of ours is one piece."""
    return train_tokenizer(SENTENCES + 2 * LINES)


def fresh(words: PreTrainedTokenizerFast, seed: int = 0, hidden: int = 32, tied: bool = True) -> Qwen2ForCausalLM:
    """A model with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


def taught(words: PreTrainedTokenizerFast, think: bool) -> Qwen2ForCausalLM:
    """A model that knows a few lines, mostly closes its replies and, with `think`, mostly keeps the format."""
    model = fresh(words, tied=not think)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    chat = ChatFormat(words, system_prompt("en", think))
    opened, closed = words.convert_tokens_to_ids(["<think>", "</think>"])
    rng = random.Random(0)
    for _ in range(60):
        rows, labels = [], []
        for _ in range(6):
            ids = chat.opening(rng.choice(SENTENCES))
            wanted: list[int] = []
            for _ in range(2):
                wanted += [-100] * (len(ids) - len(wanted))
                ids += [opened, *chat.text(rng.choice(LINES)), closed] if think else []
                ids += [*chat.text(rng.choice(LINES)), chat.stop]
                wanted += ids[len(wanted) :]
                ids += chat.turn(rng.choice(SENTENCES))
            rows.append(torch.tensor(ids[: len(wanted)]))
            labels.append(torch.tensor(wanted))
        batch, targets = (
            torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
            for tensors, value in ((rows, 0), (labels, -100))
        )
        loss = model(input_ids=batch, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def speakers(words: PreTrainedTokenizerFast) -> dict[bool, Qwen2ForCausalLM]:
    """A model that speaks, and one that thinks before it speaks."""
    torch.set_num_threads(1)
    return {think: taught(words, think) for think in (False, True)}


class Toy:
    """A user who likes replies with one of these letters in them, and leaves after some turns or earlier."""

    identity = "toy"

    def __init__(self, liked: str = "t", points: float = 10.0, leaves: bool = True, turns: int = 4) -> None:
        self.liked = liked
        self.points = points
        self.leaves = leaves
        self.turns = turns

    def open(self, profile: Profile, seed: int) -> Opening:
        """Of different lengths."""
        return Opening(" ".join(SENTENCES[: 1 + seed % 2]), None, False)

    def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Points for the letters; whether they leave depends on the reply, so that dialogues of a group differ."""
        reply = dialogue.turns[-1].reply
        change = self.points if set(reply) & set(self.liked) else -self.points
        if len(dialogue.turns) >= self.turns or (self.leaves and sum(map(ord, reply)) % 4 == 0):
            return Reaction(change=change, utterance="Bye.")
        return Reaction(change=change, utterance=SENTENCES[(seed + len(dialogue.turns)) % 3])


def configure(**values: Any) -> TrainConfig:
    """A small config: eight dialogues of few tokens, one plain update at full rate."""
    small: dict[str, Any] = {"batch": 8, "group": 4, "max_tokens": 10, "minibatches": 1, "warmup": 0, "kl": 0.0}
    small["temperature"] = 1.0
    return TrainConfig(**small | values)


def make(
    speakers: dict[bool, Qwen2ForCausalLM], words: PreTrainedTokenizerFast, agent: Toy | None = None, **values: Any
) -> Trainer:
    """A trainer of a copy of a speaker."""
    config = configure(**values)
    return Trainer(config, copy.deepcopy(speakers[config.think]), words, agent or Toy())


def weights_of(model: torch.nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient_of(model: torch.nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def turn_logprobs(model: Any, trace: Trace) -> list[Tensor]:
    """Log-probs of each reply's tokens, by one plain forward pass a turn."""
    found = []
    for reply in trace.replies:
        ids = torch.tensor([trace.context[: reply.start] + reply.ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, reply.start - 1 : -1]
        found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(reply.ids)[:, None])[:, 0])
    return found


def standardised(rewards: list[float], group: int) -> list[float]:
    """GRPO's advantages for the final rewards."""
    table = np.array(rewards).reshape(-1, group)
    centred, deviation = table - table.mean(1, keepdims=True), table.std(1, keepdims=True)
    return np.where(deviation > 1e-6, centred / (deviation + 1e-6), 0.0).flatten().tolist()


# ---------------------------------------------------------------- the trainer


@algos
@modes
def test_sampler_and_trainer_agree(speakers: Any, words: Any, algo: str, think: bool) -> None:
    trainer = make(speakers, words, algo=algo, think=think, max_tokens=14, lr=1e-3, minibatches=2)
    turns = set()
    for step in range(3):
        metrics, dialogues = trainer.step(step)
        assert 0 <= metrics["logprob_gap"] < 1e-4
        turns |= {len(dialogue.turns) for dialogue in dialogues}
        assert any(dialogue.stop is StopReason.FAREWELL for dialogue in dialogues)
    assert len(turns) > 1


@modes
def test_what_is_trained_is_what_was_sampled(speakers: Any, words: Any, think: bool) -> None:
    trainer = make(speakers, words, think=think, max_tokens=14)
    _, dialogues = trainer.step(0)
    chat = trainer.policy.chat
    for dialogue, trace in zip(dialogues, trainer.policy.traces, strict=True):
        sample = from_trace(trace)
        assert sample.ids[sample.trained].tolist() == [i for reply in trace.replies for i in reply.ids]
        assert sample.logprobs.tolist() == pytest.approx([p for reply in trace.replies for p in reply.logprobs])
        assert [chat.decode(reply.ids) for reply in trace.replies] == [turn.raw for turn in dialogue.turns]
        # What is not trained is everything else: system prompt, the user's words, marks around them.
        rest = torch.ones(len(sample), dtype=torch.bool)
        rest[sample.trained] = False
        expected = chat.opening(dialogue.opening)
        for turn, reply in zip(dialogue.turns[:-1], trace.replies, strict=False):
            assert turn.reaction is not None
            if think:
                expected += [*chat.text(turn.reply), chat.stop]
            elif reply.ids[-1] != chat.stop:
                expected.append(chat.stop)
            expected += chat.turn(turn.reaction.utterance)
        assert sample.ids[rest].tolist() == expected


@modes
@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_the_gradient_by_hand(speakers: Any, words: Any, think: bool, kl: float) -> None:
    """Every dialogue weighs the same however long it is, nothing but sampled tokens is in the loss, kl has its sign.

    The model was moved away from its reference, so that the divergence has a gradient.
    """
    trainer = make(speakers, words, think=think, kl=kl, credit="terminal", max_tokens=14, max_grad_norm=1e9)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model = copy.deepcopy(trainer.model)
    metrics, dialogues = trainer.step(0)
    advantages = standardised([dialogue.reward for dialogue in dialogues], 4)
    traces = trainer.policy.traces
    lengths = {sum(len(reply.ids) for reply in trace.replies) for trace in traces}
    assert max(lengths) >= 3 * min(lengths) and any(advantages)

    model.zero_grad()
    loss = torch.tensor(0.0)
    for trace, advantage in zip(traces, advantages, strict=True):
        new = torch.cat(turn_logprobs(model, trace))
        with torch.no_grad():
            start = torch.cat(turn_logprobs(trainer.reference, trace))
        ratio = start - new
        loss = loss - (advantage * new - kl * (ratio.exp() - 1 - ratio)).mean() / len(traces)
    loss.backward()
    found, expected = gradient_of(trainer.model), gradient_of(model)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert metrics["kl"] > 1e-3


@algos
@modes
def test_the_size_of_a_forward_pass_changes_nothing(speakers: Any, words: Any, algo: str, think: bool) -> None:
    weights, gradients, start = [], [], weights_of(speakers[think])
    for tokens in (1, 100_000):
        trainer = make(speakers, words, algo=algo, think=think, micro_tokens=tokens, lr=1e-4, kl=0.1, entropy=0.01)
        trainer.step(0)
        modules = [trainer.model, *([trainer.critic] if trainer.critic else [])]
        weights.append(torch.cat([weights_of(module) for module in modules]))
        gradients.append(torch.cat([gradient_of(module) for module in modules]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5
    assert (weights[0][: len(start)] - start).abs().max() > 5e-5
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


@algos
def test_what_was_rewarded_becomes_more_likely(speakers: Any, words: Any, algo: str) -> None:
    trainer = make(speakers, words, algo=algo, credit="terminal", lr=1e-4, batch=16)
    before = copy.deepcopy(trainer.model)
    _, dialogues = trainer.step(0)
    rewards = [dialogue.reward for dialogue in dialogues]
    if algo == "grpo":
        advantages = standardised(rewards, 4)
    else:  # the critic knows nothing yet: what counts is the mean over all tokens
        sizes = [sum(len(reply.ids) for reply in trace.replies) for trace in trainer.policy.traces]
        advantages = (np.array(rewards) - np.average(rewards, weights=sizes)).tolist()
    assert max(advantages) > 0 > min(advantages)
    moved = {True: 0.0, False: 0.0}
    with torch.no_grad():
        for trace, advantage in zip(trainer.policy.traces, advantages, strict=True):
            gain = [torch.cat(turn_logprobs(model, trace)).mean() for model in (trainer.model, before)]
            moved[advantage > 0] += abs(advantage) * float(gain[0] - gain[1])
    assert moved[True] > 0 > moved[False]


@algos
def test_nothing_moves_without_a_reason(speakers: Any, words: Any, algo: str) -> None:
    """A tiny rate moves nothing; and where all rollouts fare alike, GRPO has nothing to learn."""
    trainer = make(speakers, words, algo=algo, lr=1e-12)
    before = weights_of(trainer.model)
    for step in range(2):
        trainer.step(step)
    assert (weights_of(trainer.model) - before).abs().max() < 1e-9
    assert torch.equal(weights_of(trainer.reference), before)

    alike = make(speakers, words, Toy(points=0.0), algo=algo, lr=1e-2)
    metrics, _ = alike.step(0)
    if algo == "grpo":
        assert metrics["zero_variance_groups"] == 1
        assert torch.equal(weights_of(alike.model), before)


def test_kl_pulls_back_to_the_start(speakers: Any, words: Any) -> None:
    trainer = make(speakers, words, Toy(points=0.0), lr=1e-3, kl=1.0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    moved = copy.deepcopy(trainer.model)
    metrics, _ = trainer.step(0)
    assert metrics["kl"] > 0.01 and metrics["loss"] == pytest.approx(0, abs=1e-6)

    @torch.no_grad()
    def divergence(model: Any) -> float:
        """KL(model || reference) at every sampled token, over the whole vocabulary."""
        total = 0.0
        for trace in trainer.policy.traces:
            ids = torch.tensor([[*trace.context, *trace.replies[-1].ids]])
            at = [place - 1 for reply in trace.replies for place in range(reply.start, reply.start + len(reply.ids))]
            p, q = (torch.log_softmax(m(input_ids=ids).logits[0, at], -1) for m in (model, trainer.reference))
            total += float((p.exp() * (p - q)).sum(-1).mean())
        return total

    assert divergence(trainer.model) < 0.98 * divergence(moved)
    assert divergence(trainer.reference) == 0


@pytest.mark.parametrize("credit", ["turn", "terminal"])
@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_ppo_discounts_turns_and_not_tokens(
    speakers: Any, words: Any, monkeypatch: pytest.MonkeyPatch, credit: Any, lam: float
) -> None:
    """GAE over tokens is GAE over turns in which the critic is asked at every token."""
    calls: list[tuple[Tensor, ...]] = []

    def spy(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        found = real(*tensors)
        calls.append((tensors[1], *found))
        return found

    real = trainer_module.gae
    monkeypatch.setattr(trainer_module, "gae", spy)
    trainer = make(speakers, words, algo="ppo", credit=credit, lam=lam, gamma=0.5, critic_lr=1e-2)
    trainer.step(0)
    calls.clear()
    _, dialogues = trainer.step(1)
    gamma = 0.5 if credit == "turn" else 1.0
    for dialogue, trace, (values, advantages, targets) in zip(dialogues, trainer.policy.traces, calls, strict=True):
        assert values.abs().max() > 0
        assert torch.allclose(targets, advantages + values)
        rewards = turn_rewards(dialogue, credit)
        sizes = [len(reply.ids) for reply in trace.replies]
        starts = np.cumsum([0, *sizes])
        # lambda-return of a turn: its reward, then the next turn's first value or lambda-return.
        expected = 0.0
        for turn in range(len(sizes) - 1, -1, -1):
            last = turn == len(sizes) - 1
            value = 0.0 if last else float(values[starts[turn + 1]])
            expected = rewards[turn] + gamma * ((1 - lam) * value + lam * expected)
            part = targets[starts[turn] : starts[turn + 1]]
            assert part.tolist() == pytest.approx([expected] * sizes[turn], abs=1e-5)
        if lam == 1:
            assert [float(targets[start]) for start in starts[:-1]] == pytest.approx(returns(rewards, gamma), abs=1e-5)


@algos
def test_reward_goes_up(speakers: Any, words: Any, algo: str) -> None:
    trainer = make(speakers, words, Toy(liked="w", leaves=False, turns=3), algo=algo, lr=1e-2, critic_lr=1e-2)
    rewards = [trainer.step(step)[0]["reward"] for step in range(20)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:2]) + 0.15, rewards


def test_profiles_of_a_file_are_met_in_turn(speakers: Any, words: Any) -> None:
    profiles = generate("en", "train", 6)
    config = configure(batch=4, group=2)
    trainer = Trainer(config, copy.deepcopy(speakers[False]), words, Toy(), profiles)
    met = []
    for step in range(6):
        _, dialogues = trainer.step(step)
        ids = [dialogue.profile.id for dialogue in dialogues]
        assert ids[0] == ids[1] and ids[2] == ids[3]
        met += ids[::2]
    every = {profile.id for profile in profiles}
    assert set(met[:6]) == set(met[6:]) == every and met[:6] != met[6:]


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="session")
def base(speakers: Any, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that does not think."""
    return save(words, speakers[False], tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def thinker(speakers: Any, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that thinks."""
    return save(words, speakers[True], tmp_path_factory.mktemp("thinker"))


def save(words: PreTrainedTokenizerFast, model: Qwen2ForCausalLM, folder: Path) -> Path:
    """Save model and tokenizer as a policy folder."""
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def quick(base: Path, algo: str = "grpo", **values: Any) -> TrainConfig:
    """Four steps of four dialogues, saved after every second one."""
    settings: dict[str, Any] = {"batch": 4, "group": 2, "steps": 4, "max_tokens": 6, "save_every": 2, "lr": 5e-3}
    settings["final_rate"] = 1.0  # so that a run of two steps is the beginning of one of four
    return TrainConfig(**settings | {"policy": str(base), "algo": algo} | values)


@pytest.fixture(scope="session")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs of both algorithms."""
    folders = {}
    for algo in ("grpo", "ppo"):
        folders[algo] = tmp_path_factory.mktemp("whole") / algo
        assert run(quick(base, algo), base, folders[algo]) == folders[algo] / "policy"
    return folders


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The records of a file of a run."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def same(one: Path, other: Path, names: tuple[str, ...] = ("metrics.jsonl", "samples.jsonl")) -> bool:
    """Whether two runs wrote the same bytes and the same policy."""
    weights = "policy/model.safetensors"
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in (*names, weights))


def hurt(file: Path) -> None:
    """Cut a file off in the middle."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@algos
def test_a_run_writes_what_it_promises(base: Path, whole: dict[str, Path], algo: str) -> None:
    folder = whole[algo]
    records = lines(folder)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    promised = {
        "reward", "entropy", "kl", "clip_fraction", "logprob_gap", "tokens_per_reply", "repeated_replies",
        "explained_variance" if algo == "ppo" else "zero_variance_groups",
    }  # fmt: skip
    for record in records:
        assert promised <= set(record)
        scores = [value for name, value in record.items() if name.startswith("score/")]
        assert scores and all(0 <= score <= 100 for score in scores)
        assert 0 <= record["reward"] <= 1 and 0 < record["tokens_per_reply"] <= 6
        assert record["entropy"] > 0 and record["kl"] >= 0 and record["logprob_gap"] < 1e-4
        assert 0 <= record["clip_fraction"] <= 1 and 0 <= record["repeated_replies"] <= 1
    assert "value_loss" in records[0] if algo == "ppo" else "value_loss" not in records[0]
    assert {*records[0]} - {"step"} >= {name for name in records[1] if not name.startswith("score/")} - {"step"}

    samples = lines(folder, "samples.jsonl")
    assert {sample.pop("step") for sample in samples} == {4}
    assert [Transcript.model_validate(sample).policy for sample in samples] == ["step-4"] * len(samples)
    assert [record["step"] for record in lines(folder, "timing.jsonl")] == [1, 2, 3, 4]
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert TrainConfig.model_validate(facts["config"]) == quick(base, algo)
    assert facts["user"].startswith("embedded/vanilla/en/train@") and set(facts["versions"]) >= {"torch", "rlver"}

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, local_files_only=True)

    start, trained = weights_of(load(folder / "base")), weights_of(load(folder / "policy"))
    assert torch.equal(start, weights_of(load(base))) and not torch.equal(start, trained)
    assert torch.equal(trained, weights_of(load(folder / "checkpoints" / "step-000004" / "policy")))
    note = json.loads((folder / "policy" / "rlver.json").read_text(encoding="utf-8"))
    assert (note["think"], note["language"], note["max_tokens"], note["algo"]) == (False, "en", 6, algo)
    # Weights are in safetensors alone: no other file but text and TensorBoard's.
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors" and path.parent.name != "tensorboard":
            assert path.suffix in {".json", ".jsonl", ".jinja", ".txt"}
            path.read_text(encoding="utf-8")


@algos
def test_the_same_command_gives_the_same_bytes(base: Path, whole: dict[str, Path], tmp_path: Path, algo: str) -> None:
    run(quick(base, algo), base, tmp_path / "again")
    assert same(tmp_path / "again", whole[algo])
    run(quick(base, algo, seed=1, steps=1), base, tmp_path / "other")
    assert lines(tmp_path / "other")[0] != lines(whole[algo])[0]


def test_a_thinking_run_in_chinese_with_guarded_users_repeats_too(thinker: Path, tmp_path: Path) -> None:
    config = quick(thinker, think=True, user="challenging", language="zh", steps=2, epochs=2, max_tokens=14)
    for name in ("one", "two"):
        run(config, thinker, tmp_path / name)
    assert same(tmp_path / "one", tmp_path / "two")
    transcripts = lines(tmp_path / "one", "samples.jsonl")
    assert any(turn["thought"] and turn["reply"] for transcript in transcripts for turn in transcript["turns"])
    assert all(transcript["think"] and transcript["language"] == "zh" for transcript in transcripts)


@algos
def test_a_run_can_break_anywhere_and_go_on(
    base: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    """A crash before a checkpoint, in the middle of writing one, and with half a line of metrics written."""
    config = quick(base, algo)

    class Crash(Exception):
        pass

    def crash_at(step: int) -> Callable[[int, dict[str, float]], None]:
        def on_step(number: int, _: dict[str, float]) -> None:
            if number == step:
                raise Crash

        return on_step

    with pytest.raises(Crash):
        run(config, base, tmp_path, on_step=crash_at(1))
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    with pytest.raises(Crash):
        run(config, base, tmp_path, resume=True, on_step=crash_at(3))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "rew')

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rlver.train.checkpoint.save_file", full)
        with pytest.raises(OSError):
            run(config, base, tmp_path, resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000002"]
    run(config, base, tmp_path, resume=True)
    assert same(tmp_path, whole[algo])
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-000002", "step-000004"]
    # A finished run that is resumed stays as it is.
    run(config, base, tmp_path, resume=True)
    assert same(tmp_path, whole[algo])


def test_learning_rates_rise_and_fall_and_survive_a_break(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    config = quick(base, warmup=1, final_rate=0.25, steps=5)
    assert [config.rate(step) for step in range(5)] == pytest.approx([0.5, 1.0, 0.8125, 0.625, 0.4375])
    assert quick(base, warmup=0, steps=3).rate(2) == 1.0

    class Crash(Exception):
        pass

    def crash(number: int, _: dict[str, float]) -> None:
        if number == 3:
            raise Crash

    config = quick(base, warmup=0, final_rate=0.1)
    with pytest.raises(Crash):
        run(config, base, tmp_path / "broken", on_step=crash)
    run(config, base, tmp_path / "broken", resume=True)
    run(config, base, tmp_path / "unbroken")
    assert same(tmp_path / "broken", tmp_path / "unbroken")
    assert not same(tmp_path / "broken", whole["grpo"])


def test_a_run_can_be_made_longer(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    run(quick(base, steps=2), base, tmp_path)
    run(quick(base, steps=4), base, tmp_path, resume=True)
    assert same(tmp_path, whole["grpo"], ("metrics.jsonl",))


@pytest.fixture
def start_training(base: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the command with the settings of `quick` and returns its process once two steps are done."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes: list[subprocess.Popen[str]] = []

    def start(algo: str) -> subprocess.Popen[str]:
        config = quick(base, algo, steps=40)
        command = [sys.executable, "-m", "rlver", "train", "--out", str(tmp_path / "run")]
        command += [
            part
            for key, value in config.model_dump(exclude_defaults=True).items()
            for part in ("--set", f"{key}={value}")
        ]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def go_on(base: Path, whole: dict[str, Path], folder: Path, algo: str) -> None:
    """Resume a stopped run; it ends as an uninterrupted one does, as far as both go."""
    done = len(lines(folder))
    steps = max(4, done + 1)
    run(quick(base, algo, steps=steps), base, folder, resume=True)
    if steps == 4:
        assert same(folder, whole[algo])
        return
    again = folder.with_name("again")
    run(quick(base, algo, steps=steps), base, again)
    assert same(folder, again)


@algos
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    start_training: Callable[[str], subprocess.Popen[str]],
    base: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    algo: str,
) -> None:
    process = start_training(algo)
    time.sleep(0.15 * random.random())
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    go_on(base, whole, tmp_path / "run", algo)


def test_ctrl_c_saves(
    start_training: Callable[[str], subprocess.Popen[str]], base: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    process = start_training("ppo")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    done = len(lines(tmp_path / "run"))
    assert f"stopped after step {done}; state saved in" in said and "--resume" in said
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()
    go_on(base, whole, tmp_path / "run", "ppo")


def test_ctrl_c_in_any_moment_of_a_step_saves_it(base: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """The signal comes while the progress is shown, after the place where checkpoints are due."""

    def interrupt(number: int, _: dict[str, float]) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        run(quick(base), base, tmp_path, on_step=interrupt)
    done = len(lines(tmp_path))
    assert f"stopped after step {done};" in str(stop.value)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "checkpoints" / f"step-{done:06d}").is_dir()
    run(quick(base), base, tmp_path, resume=True)
    assert same(tmp_path, whole["grpo"])


# ---------------------------------------------------------------- wrong input


def refused(config: TrainConfig, base: Path, folder: Path, resume: bool = False) -> str:
    """The sentence with which a run is refused."""
    with pytest.raises(RlverError) as error:
        run(config, base, folder, resume=resume)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def half(base: Path, whole: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the PPO run whose last checkpoint is gone."""
    folder = tmp_path / "half"
    shutil.copytree(whole["ppo"], folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    return folder


def test_a_folder_holds_one_run(base: Path, half: Path) -> None:
    config = quick(base, "ppo")
    before = (half / "metrics.jsonl").read_bytes()
    sentence = refused(config, base, half)
    assert str(half) in sentence and "--resume" in sentence
    for change in ({"lr": 1e-4}, {"algo": "grpo"}, {"seed": 3}, {"user": "challenging"}):
        sentence = refused(config.model_copy(update=change), base, half, resume=True)
        assert str(half) in sentence and next(iter(change)) in sentence and "batch" not in sentence
    assert (half / "metrics.jsonl").read_bytes() == before
    hurt(half / "config.json")
    assert "config.json" in refused(config, base, half, resume=True)


@pytest.mark.parametrize(
    "name", ["policy/model.safetensors", "critic.safetensors", "optimizer.safetensors", "state.json"]
)
def test_a_damaged_checkpoint_is_told(base: Path, half: Path, name: str) -> None:
    checkpoint = half / "checkpoints" / "step-000002"
    hurt(checkpoint / name)
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "damaged" in sentence
    (checkpoint / name).unlink()
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "damaged" in sentence
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    assert str(checkpoint) in refused(quick(base, "ppo"), base, half, resume=True)


def test_a_checkpoint_of_another_model_is_told(words: Any, base: Path, half: Path, tmp_path: Path) -> None:
    wide = save(words, fresh(words, hidden=48), tmp_path / "wide")
    run(quick(wide, "ppo", steps=1), wide, tmp_path / "other")
    checkpoint = half / "checkpoints" / "step-000002"
    shutil.rmtree(checkpoint)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-000001", checkpoint)
    sentence = refused(quick(base, "ppo"), base, half, resume=True)
    assert str(checkpoint) in sentence and "another model" in sentence


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `rlver train` with arguments that must be refused with exit code 1 and one sentence, which is returned."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["train", "--out", str(tmp_path / "out"), *arguments]) == 1
        shown = capsys.readouterr()
        # Loading a model may have shown its progress before.
        sentence = shown.err.splitlines()[-1]
        assert shown.out == "" and sentence.startswith("Error: ")
        assert not (tmp_path / "out" / "config.json").exists()
        return sentence

    return call


def test_unusable_policies_are_told(fails: Callable[..., str], base: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in fails("--policy", nowhere)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails("--policy", str(tmp_path / "empty"))
    shutil.copytree(base, tmp_path / "broken")
    hurt(tmp_path / "broken" / "model.safetensors")
    assert str(tmp_path / "broken") in fails("--policy", str(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["sped=3"], "sped"),
        (["sped=3"], "Known keys: policy, language"),
        (["lr"], "key=value"),
        (["lr=fast"], "lr"),
        (["lr=["], "lr"),
        (["batch=6", "group=4"], "batch (6) must be a multiple of group (4)"),
        (["group=1"], "at least 2"),
        (["preset=hard"], "sage, release, paper"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_told(fails: Callable[..., str], base: Path, settings: list[str], told: str) -> None:
    assert told in fails("--policy", str(base), *(part for setting in settings for part in ("--set", setting)))


@pytest.mark.parametrize(
    "content",
    [b"- lr\n- batch\n", b"lr", b"lr: [1", b"lr: 1\x00", b"\xff\xfelr: 1", b"1: 2\n"],
    ids=["list", "word", "unclosed", "control", "bytes", "number"],
)
def test_a_broken_config_file_is_told(fails: Callable[..., str], base: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    message = fails("--policy", str(base), "--config", str(file))
    assert "bad.yaml" in message or "config" in message
    file.unlink()
    assert str(file) in fails("--policy", str(base), "--config", str(file))


def test_unusable_profiles_are_told(fails: Callable[..., str], base: Path, tmp_path: Path) -> None:
    chinese = tmp_path / "zh.jsonl"
    write_profiles(chinese, generate("zh", "train", 2))
    message = fails("--policy", str(base), "--profiles", str(chinese))
    assert str(chinese) in message and "--language" in message
    chinese.unlink()
    assert str(chinese) in fails("--policy", str(base), "--profiles", str(chinese))


def test_resuming_what_cannot_be_resumed_is_told(
    fails: Callable[..., str], half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "seed" in fails("--resume", "--out", str(half), "--seed", "5")
    hurt(half / "config.json")
    assert "config.json" in fails("--resume", "--out", str(half))
    assert main(["train", "--resume"]) == 1 and "--out" in capsys.readouterr().err
    assert main(["train", "--algo", "magic"]) == 2


def test_the_command_trains_and_goes_on(
    base: Path, whole: dict[str, Path], half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = tmp_path / "profiles.jsonl"
    write_profiles(profiles, generate("en", "validation", 3))
    file = tmp_path / "config.yaml"
    file.write_text("steps: 1\nbatch: 2\ngroup: 2\nmax_tokens: 4\nlr: 1e-4\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["train", "--policy", str(base), "--config", str(file), "--set", "lr=2e-4", "--seed", "7"]
    assert main([*arguments, "--profiles", str(profiles), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == str(out / "policy") and Path(told["policy"]).is_dir()
    stored = TrainConfig.model_validate(json.loads((out / "config.json").read_text(encoding="utf-8"))["config"])
    assert (stored.steps, stored.lr, stored.seed, stored.profiles) == (1, 2e-4, 7, str(profiles))
    assert {sample["profile"].split("-")[1] for sample in lines(out, "samples.jsonl")} == {"validation"}
    # Resuming needs no more than the folder.
    assert main(["train", "--resume", "--out", str(half)]) == 0
    assert same(half, whole["ppo"])


def test_configs_are_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nseed: 1\nbatch: 16\n", encoding="utf-8")
    config = load_config(file, ["seed=3", "kl = 0"], {"seed": 2, "batch": 24, "algo": None})
    assert (config.lr, config.seed, config.batch, config.kl, config.algo) == (1e-3, 3, 24, 0.0, "grpo")
    assert load_config(None, [], {"think": True}).max_tokens == 80
    assert load_config(None, ["max_tokens=9"], {"think": True}).max_tokens == 9
    assert load_config(None, ["batch=7"], {"algo": "ppo"}).rollouts == 1
    file.write_text("", encoding="utf-8")
    assert load_config(file, [], {}) == TrainConfig.model_validate({})
    wrong = {"lr": 0, "final_rate": 0, "steps": 0, "clip": -1, "temperature": 0, "algo": "x", "gamma": 2}
    for key, value in wrong.items():
        with pytest.raises(RlverError, match=key):
            load_config(None, [], {key: value})


def test_timing_is_kept_out_of_the_metrics(whole: dict[str, Path]) -> None:
    """What differs from run to run may not stand among what must not."""
    for folder in whole.values():
        assert not any("second" in name for record in lines(folder) for name in record)
        steps = [record["step"] for record in lines(folder, "timing.jsonl")]
        assert all(after == before + 1 for before, after in pairwise(steps))
    assert run_module.__doc__ and "timing.jsonl" in run_module.__doc__
