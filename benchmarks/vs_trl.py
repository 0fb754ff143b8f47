"""Our GRPO step beside that of TRL's GRPOTrainer (`rollout_func`), and both beside a floor, in one process.

    pip install -e '.[bench]'
    python benchmarks/vs_trl.py            # both sizes, memory, scaling; writes benchmarks/results/vs_trl.{md,png,json}
    python benchmarks/vs_trl.py --quick    # a minute's smoke test of the same code; writes nothing

Both train the same Qwen2 model with random weights in fp32, on the same dialogues with the same user, who answers at
once and never leaves: as many dialogues, turns and tokens of the same length on both sides, one update a step, the
same micro-batches, the same optimizer. No reply can close early: the model never samples a mark. The sides take turns,
one step each, so that whatever else the machine does meets all of them alike.

The floor is what such a step cannot do without: a bare loop of the decoder's forward passes with a static cache that
samples the same tokens in lockstep, and a bare forward-backward pass with the optimizer's step over the same tokens,
with logits at the sampled tokens alone. There is no user in it, no text, no cutting and no bookkeeping.

Without TRL installed, ours and the floor are measured alone.
"""

from __future__ import annotations

import os

# Before torch is imported: idle threads that spin would slow whoever shares the cores, and be slowed by them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import importlib.util
import json
import logging
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlver.agents.base import Opening
from rlver.core.data import read_text
from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.emotion import PRESETS, Preset
from rlver.core.profile import Profile
from rlver.policies.chat import ChatFormat
from rlver.policies.prompts import system_prompt
from rlver.stories import load_stories
from rlver.stories.generate import generate
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.config import TrainConfig
from rlver.train.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
TARGET_TRL, TARGET_FLOOR = 0.6, 1.3
LINE = "I did not sleep at all last night, and nobody at work asked me why I looked so tired, which made it all worse."


@dataclass(frozen=True)
class Setting:
    """One comparison: the model's size and the shape of a step."""

    hidden: int = 128
    layers: int = 2
    dialogues: int = 32
    turns: int = 4
    tokens: int = 24
    """Tokens of a reply; the user's lines have as many."""
    said: int = 24
    """Tokens of a line of the user."""
    group: int = 4
    micro: int = 8
    """Dialogues of one forward-backward pass, on all sides."""
    kl: float = 0.0
    """Weight of the divergence from the starting policy; 0 is TRL's default and needs no reference model."""
    threads: int = 1
    lr: float = 1e-6

    @property
    def name(self) -> str:
        """For people."""
        return f"hidden {self.hidden}, {self.layers} layers, kl {self.kl:g}"


@dataclass
class Counts:
    """What a side has done in one step."""

    sampled: int
    """Tokens sampled."""
    trained: int
    """Tokens with a loss."""
    passed: int
    """Tokens of the sequences that the update ran over, padding included."""


# The user, the tokenizer and the model: the same for all.


class Patient:
    """A user who always says the same, answers at once and never leaves. Each reply moves the emotion by its letters."""

    identity = "patient"

    def __init__(self, line: str) -> None:
        self.line = line

    def open(self, profile: Profile, seed: int) -> Opening:
        """The line."""
        return Opening(self.line, None, False)

    def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """The line, and points that differ from reply to reply."""
        return Reaction(change=sum(map(ord, dialogue.turns[-1].reply)) % 11 - 5, utterance=self.line)


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as the tiny policy has it, with its whole vocabulary of 3,072."""
    stories = [story.model_dump_json() for story in load_stories("en", "train")]
    return train_tokenizer([LINE, read_text("rlver.agents", "data/reference.en.txt"), *stories])


def make_line(tokens: int) -> str:
    """A line of the user of exactly so many tokens."""
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(" ".join([LINE] * (1 + tokens // 20)), add_special_tokens=False)[:tokens]
    line = str(tokenizer.decode(ids))
    if tokenizer.encode(line, add_special_tokens=False) != ids:
        raise RuntimeError(f"a line of {tokens} tokens does not survive being written and read")
    return line


def make_model(setting: Setting, seed: int = 0) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights that never samples a mark, so that no reply closes early."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=setting.hidden,
            intermediate_size=2 * setting.hidden,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.hidden // 32,
            num_key_value_heads=setting.hidden // 32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # One direction of the residual stream points up wherever a word stands, and a mark's own embedding points down.
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 1.0
        embedding[tokenizer.all_special_ids, 0] = -1.0
    return model.eval()


def make_chat() -> ChatFormat:
    """The chat format of the tiny policy."""
    return ChatFormat(make_tokenizer(), system_prompt("en", False))


# The three sides. Each has `step()`, which does one step of GRPO and leaves its counts.


class Ours:
    """Our trainer."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.preset = Preset(
            name="patient", start=50, clamp=10, floor=0, fails_below=-1, ends_at_success=False, replies=setting.turns
        )
        PRESETS["patient"] = self.preset
        length = len(Floor.plan(setting).ids)
        config = TrainConfig(
            preset="patient",
            credit="terminal",
            batch=setting.dialogues,
            group=setting.group,
            minibatches=1,
            micro_tokens=setting.micro * length,
            max_tokens=setting.tokens,
            temperature=1.0,
            lr=setting.lr,
            warmup=0,
            final_rate=1.0,
            kl=setting.kl,
            threads=setting.threads,
        )
        profiles = generate("en", "train", setting.dialogues // setting.group, 0)
        self.trainer = Trainer(config, make_model(setting), make_tokenizer(), Patient(make_line(setting.said)), profiles)
        self.number = 0
        self.counts = Counts(0, 0, 0)

    def step(self) -> None:
        """One step."""
        self.trainer.step(self.number)
        self.number += 1

    def count(self) -> Counts:
        """Counts of the last step."""
        traces = self.trainer.policy.traces
        sampled = sum(len(reply.ids) for trace in traces for reply in trace.replies)
        # The last reply was never fed back, so it stands behind the context.
        passed = sum(len(trace.context) + len(trace.replies[-1].ids) for trace in traces)
        return Counts(sampled, sampled, passed)


class StraightCache(Cache):
    """Keys and values of rows of one length, written one after another to a place reserved before."""

    def __init__(self, model: Qwen2ForCausalLM, rows: int, slots: int) -> None:
        super().__init__(layers=[])
        config = model.config
        shape = (rows, config.num_key_value_heads, slots, config.hidden_size // config.num_attention_heads)
        self.stores = [
            tuple(torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]
        self.used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: states are (rows, heads, n, head size)."""
        keys, values = self.stores[layer_idx]
        end = self.used + key_states.shape[2]
        keys[:, :, self.used : end] = key_states
        values[:, :, self.used : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Tokens that each row holds."""
        return self.used


@dataclass(frozen=True)
class Plan:
    """One dialogue's tokens, in which replies stand as zeros."""

    ids: list[int]
    chunks: list[list[int]]
    """What is fed before each reply."""
    starts: list[int]
    """Where each reply begins."""


class Floor:
    """Bare decoding and a bare update; `seconds` of each of the last step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = make_model(setting)
        self.reference = make_model(setting) if setting.kl else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=setting.lr, weight_decay=0.0)
        self.made = self.plan(setting)
        self.ids = torch.tensor([self.made.ids] * setting.dialogues)
        self.at = torch.cat([torch.arange(start, start + setting.tokens) for start in self.made.starts])
        self.seconds = {"decode": 0.0, "reference": 0.0, "update": 0.0}

    @staticmethod
    def plan(setting: Setting) -> Plan:
        """The tokens of a dialogue: as both trainers lay it out."""
        chat, line = make_chat(), make_line(setting.said)
        chunks = [chat.opening(line)] + (setting.turns - 1) * [[chat.stop, *chat.turn(line)]]
        ids: list[int] = []
        starts = []
        for chunk in chunks:
            ids += chunk
            starts.append(len(ids))
            ids += [0] * setting.tokens
        return Plan(ids, chunks, starts)

    def step(self) -> None:
        """Decode, then one update with what was decoded."""
        times = [time.perf_counter()]
        self.decode()
        times.append(time.perf_counter())
        reference = self.refer()
        times.append(time.perf_counter())
        self.update(reference)
        times.append(time.perf_counter())
        self.seconds = dict(zip(self.seconds, (b - a for a, b in zip(times, times[1:], strict=False)), strict=True))

    @torch.no_grad()
    def decode(self) -> None:
        """Sample all replies in lockstep."""
        self.model.eval()
        rows = len(self.ids)
        straight = StraightCache(self.model, rows, self.ids.shape[1])
        body, head = self.model.get_decoder(), self.model.get_output_embeddings()

        def forward(ids: Tensor) -> Tensor:
            n = ids.shape[1]
            positions = torch.arange(straight.used, straight.used + n)
            mask = None
            if n > 1 and straight.used:
                mask = (torch.arange(straight.used + n) <= positions[:, None])[None, None]
            hidden = body(
                input_ids=ids,
                position_ids=positions[None],
                attention_mask={"full_attention": mask},
                past_key_values=straight,
                use_cache=True,
            ).last_hidden_state
            straight.used += n
            return head(hidden[:, -1])

        for chunk, start in zip(self.made.chunks, self.made.starts, strict=True):
            # What the model has not seen yet: with the last token of the reply before.
            logits = forward(self.ids[:, start - len(chunk) - (start > len(chunk)) : start])
            for k in range(self.setting.tokens):
                cumulative = torch.log_softmax(logits, -1).exp().cumsum(-1)
                token = torch.searchsorted(cumulative, torch.rand(rows, 1) * cumulative[:, -1:], right=True)
                token = token.clamp(max=cumulative.shape[1] - 1)
                self.ids[:, start + k] = token[:, 0]
                if k + 1 < self.setting.tokens:
                    logits = forward(token)

    def logprobs(self, model: Qwen2ForCausalLM, ids: Tensor) -> Tensor:
        """Log-probs (rows, tokens sampled) with one plain causal forward pass."""
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, self.at - 1]
        logits = model.get_output_embeddings()(hidden)
        return torch.log_softmax(logits, -1).gather(2, ids[:, self.at, None]).squeeze(2)

    @torch.no_grad()
    def refer(self) -> list[Tensor]:
        """Log-probs under the starting policy, if they are wanted."""
        if self.reference is None:
            return []
        return [self.logprobs(self.reference, ids) for ids in self.ids.split(self.setting.micro)]

    def update(self, reference: Sequence[Tensor]) -> None:
        """Forward, backward, optimizer."""
        self.model.train()
        self.optimizer.zero_grad()
        for i, ids in enumerate(self.ids.split(self.setting.micro)):
            logprobs = self.logprobs(self.model, ids)
            loss = -logprobs.mean()
            if reference:
                gap = reference[i] - logprobs
                loss = loss + self.setting.kl * (gap.exp() - 1 - gap).mean()
            (loss * len(ids) / len(self.ids)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def count(self) -> Counts:
        """Counts of a step."""
        sampled = self.at.numel() * len(self.ids)
        return Counts(sampled, sampled, self.ids.numel())


@dataclass
class Rollout:
    """A `rollout_func` for TRL as its users would write it: `generate` once a turn for all dialogues.

    With `keep`, the cache goes from turn to turn, so that `generate` encodes only what is new; without, it encodes
    the whole context again. The log-probs of sampling are left out: without vLLM, TRL does not use them.
    """

    setting: Setting
    keep: bool = True
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    seconds: float = 0.0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """As TRL calls it, with one prompt per dialogue. The user is ours, and is asked as our rollout asks it."""
        began = time.perf_counter()
        setting, chat, agent = self.setting, make_chat_once(), Patient(make_line(self.setting.said))
        profiles = profiles_of(setting)
        dialogues = [Dialogue(profiles[int(prompt)], PRESETS["patient"]) for prompt in prompts]
        for dialogue in dialogues:
            dialogue.begin(*agent.open(dialogue.profile, 0))
        prompt_ids = [chat.opening(dialogue.opening) for dialogue in dialogues]
        completions: list[list[int]] = [[] for _ in dialogues]
        masks: list[list[int]] = [[] for _ in dialogues]
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        model.eval()
        past = DynamicCache(config=model.config) if self.keep else None
        for turn in range(setting.turns):
            ids = torch.tensor([p + c for p, c in zip(prompt_ids, completions, strict=True)])
            # Nothing is cut from the distribution, and nothing but the tokens is asked for.
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=past,
                max_new_tokens=setting.tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
                eos_token_id=chat.stop,
                pad_token_id=chat.tokenizer.pad_token_id,
            )[:, ids.shape[1] :].tolist()
            for i, (dialogue, new) in enumerate(zip(dialogues, out, strict=True)):
                completions[i] += new
                masks[i] += [1] * len(new)
                if dialogue.reply(chat.decode(new)):
                    dialogue.react(agent.react(dialogue, 0))
                if turn + 1 < setting.turns:
                    chunk = [chat.stop, *chat.turn(dialogue.messages()[-1].content)]
                    completions[i] += chunk
                    masks[i] += [0] * len(chunk)
        model.train(training)
        sampled = sum(map(sum, masks))
        longest = max(map(len, prompt_ids)) + max(map(len, completions))
        self.counts = Counts(sampled, sampled, longest * len(dialogues))
        self.seconds = time.perf_counter() - began
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completions,
            "logprobs": None,
            "env_mask": masks,
            "earned": [dialogue.reward for dialogue in dialogues],
        }


@cache
def make_chat_once() -> ChatFormat:
    """The chat format, made once."""
    return make_chat()


@cache
def profiles_of(setting: Setting) -> list[Profile]:
    """One profile per group."""
    return generate("en", "train", setting.dialogues // setting.group, 0)


def trl_trainer(setting: Setting, rollout: Rollout, steps: int, folder: Path, between: Callable[[float, float], None]):  # type: ignore[no-untyped-def]
    """A GRPOTrainer of the same work; `between` is called after each step with its wall and processor seconds."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    from trl import GRPOConfig, GRPOTrainer

    set_verbosity_error()
    disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            between(time.perf_counter() - self.wall, time.process_time() - self.cpu)

    # TRL loads its reference model from the folder that the model came from.
    make_model(setting).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=setting.dialogues // setting.micro,
        num_generations=setting.group,
        num_iterations=1,
        max_completion_length=setting.turns * (setting.tokens + setting.said + 16),
        max_steps=steps,
        beta=setting.kl,
        loss_type="grpo",
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        temperature=1.0,
        # What TRL does by default for large models on GPUs, and would slow a small one on a CPU, is off.
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=lambda earned, **_: earned,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(setting.dialogues // setting.group)]}),
        processing_class=make_tokenizer(),
        rollout_func=rollout,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


# Measuring.


@dataclass
class Clock:
    """Wall and processor seconds of the steps of a side, in order."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], None]) -> None:
        """Do one step and keep its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        self.add(time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, wall: float, cpu: float) -> None:
        """Keep the time of a step."""
        self.wall.append(wall)
        self.cpu.append(cpu)

    def settled(self, warmup: int) -> Clock:
        """Without the first steps."""
        return Clock(self.wall[warmup:], self.cpu[warmup:])


def have_trl() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


def compare(setting: Setting, rounds: int, warmup: int) -> dict[str, Any]:
    """Let the sides take turns, one step each; returns times of all of them."""
    torch.set_num_threads(setting.threads)
    ours, floor = Ours(setting), Floor(setting)
    clocks = {"ours": Clock(), "floor": Clock()}
    parts: dict[str, list[float]] = {"decode": [], "reference": [], "update": []}
    counts: dict[str, Counts] = {}

    def others() -> None:
        clocks["ours"].time(ours.step)
        clocks["floor"].time(floor.step)
        for name, seconds in floor.seconds.items():
            parts[name].append(seconds)
        counts.update(ours=ours.count(), floor=floor.count())

    if have_trl():
        kinds = {"trl, cache kept": True, "trl, encoding again": False}
        clocks |= {name: Clock() for name in kinds}
        parts |= {name: [] for name in kinds}
        rollout, turn = Rollout(setting, True), [0]

        def between(wall: float, cpu: float) -> None:
            name = list(kinds)[turn[0] % 2]
            clocks[name].add(wall, cpu)
            parts[name].append(rollout.seconds)
            counts[name] = replace(rollout.counts)
            turn[0] += 1
            rollout.keep = list(kinds.values())[turn[0] % 2]
            if turn[0] % 2 == 0:
                others()

        with tempfile.TemporaryDirectory() as folder:
            trl_trainer(setting, rollout, 2 * (rounds + warmup), Path(folder), between).train()
    else:
        for _ in range(rounds + warmup):
            others()
    if len({tuple(asdict(count).values()) for count in counts.values()}) != 1:
        raise RuntimeError(f"the sides did not do the same work: {counts}")
    return {
        "setting": asdict(setting),
        "counts": asdict(counts["ours"]),
        "wall": {name: clock.settled(warmup).wall for name, clock in clocks.items()},
        "cpu": {name: clock.settled(warmup).cpu for name, clock in clocks.items()},
        "parts": {name: times[warmup:] for name, times in parts.items()},
    }


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios round by round, with its quartiles."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return median(ratios), low, high


def faster_trl(found: dict[str, Any]) -> str | None:
    """Name of TRL's faster rollout."""
    names = [name for name in found["wall"] if name.startswith("trl")]
    return min(names, key=lambda name: median(found["wall"][name]), default=None)


def scale(setting: Setting, rounds: int, shapes: dict[str, list[int]]) -> dict[str, list[tuple[int, float]]]:
    """Median time of our step by number of dialogues, turns and tokens; sizes take turns."""
    torch.set_num_threads(setting.threads)
    found = {}
    for axis, values in shapes.items():
        sides = {value: Ours(replace(setting, **{axis: value})) for value in values}
        clocks = {value: Clock() for value in values}
        for _ in range(rounds + 1):
            for value, side in sides.items():
                PRESETS["patient"] = side.preset
                clocks[value].time(side.step)
        found[axis] = [(value, median(clock.settled(1).wall)) for value, clock in clocks.items()]
    return found


def fit(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Least squares line through points: slope, intercept, R^2."""
    import numpy as np

    x, y = np.array(points, dtype=float).T
    slope, intercept = np.polyfit(x, y, 1)
    rest = float(((y - slope * x - intercept) ** 2).sum())
    return float(slope), float(intercept), 1 - rest / float(((y - y.mean()) ** 2).sum())


def memory(side: str, setting: Setting, steps: int) -> dict[str, float]:
    """Peak memory in MB of a side alone, in a process of its own: in all, and over what its imports take."""
    command = [sys.executable, __file__, "--alone", side, "--steps", str(steps), "--setting", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak() -> float:
    """Most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(side: str, setting: Setting, steps: int) -> None:
    """Run one side alone and print its peak memory as JSON."""
    torch.set_num_threads(setting.threads)
    make_line(setting.said)
    Ours(setting)  # registers the preset; and all sides then hold what making a model takes
    if side.startswith("trl"):
        import trl.trainer.grpo_trainer  # noqa: F401
    before = peak()
    if side.startswith("trl"):
        with tempfile.TemporaryDirectory() as folder:
            rollout = Rollout(setting, side == "trl, cache kept")
            trl_trainer(setting, rollout, steps, Path(folder), lambda wall, cpu: None).train()
    else:
        one = Ours(setting) if side == "ours" else Floor(setting)
        for _ in range(steps):
            one.step()
    print(json.dumps({"peak": peak(), "over_imports": peak() - before}))


# Telling.


def tell(found: dict[str, Any]) -> Iterator[str]:
    """The lines of one comparison, as Markdown."""
    setting, wall, cpu, parts = Setting(**found["setting"]), found["wall"], found["cpu"], found["parts"]
    counts, best = found["counts"], faster_trl(found)
    yield (
        f"### {setting.name.capitalize()}\n\n{setting.dialogues} dialogues x {setting.turns} turns x {setting.tokens} "
        f"tokens (the user's lines: {setting.said}), groups of {setting.group}, micro-batches of {setting.micro}, "
        f"{setting.threads} thread(s), {len(wall['ours'])} rounds. Every side sampled {counts['sampled']} tokens a step, "
        f"trained {counts['trained']}, and ran its update over {counts['passed']} (checked).\n"
    )
    yield "| side | step, s (quartiles) | processor, s | of it rollout / reference / update, s | peak MB (over imports) |"
    yield "|---|---|---|---|---|"
    for name in wall:
        low, middle, high = quantiles(wall[name], n=4, method="inclusive")
        if name == "floor":
            split = " / ".join(f"{median(parts[part]):.3f}" for part in ("decode", "reference", "update"))
        elif name in parts:
            split = f"{median(parts[name]):.3f} / - / {median(w - r for w, r in zip(wall[name], parts[name])):.3f} (both)"
        else:
            split = "-"
        held = found.get("memory", {}).get(name)
        shown = f"{held['peak']:.0f} ({held['over_imports']:.0f})" if held else "not measured"
        mark = " (the faster)" if name == best else ""
        yield f"| {name}{mark} | {middle:.3f} ({low:.3f}-{high:.3f}) | {median(cpu[name]):.3f} | {split} | {shown} |"
    yield ""
    bare = [d + u for d, u in zip(parts["decode"], parts["update"], strict=True)]
    rows: list[tuple[str, Sequence[float], Sequence[float], float | None]] = []
    if best:
        rows.append((f"ours / {best}", wall["ours"], wall[best], TARGET_TRL))
        rows.append((f"ours / {best}, processor time", cpu["ours"], cpu[best], None))
    rows.append(("ours / floor (decode + update)", wall["ours"], bare, TARGET_FLOOR))
    if setting.kl:
        rows.append(("ours / floor with a bare reference pass", wall["ours"], wall["floor"], None))
    rows.append(("ours / whole floor, processor time", cpu["ours"], cpu["floor"], None))
    yield "| ratio, round by round | median (quartiles) | target |"
    yield "|---|---|---|"
    for name, one, other, target in rows:
        middle, low, high = ratio(one, other)
        verdict = "-" if target is None else f"at most {target}: {'met' if middle <= target else '**missed**'}"
        yield f"| {name} | {middle:.2f} ({low:.2f}-{high:.2f}) | {verdict} |"
    if not best:
        yield "\nTRL is not installed: not measured."
    yield ""


def tell_scaling(found: dict[str, list[tuple[int, float]]], setting: Setting) -> Iterator[str]:
    """The lines of the scaling, as Markdown."""
    yield (
        f"### Our step against dialogues, turns and tokens\n\n{setting.name.capitalize()}; "
        f"otherwise {setting.dialogues} x {setting.turns} x {setting.tokens}. ![plot](vs_trl.png)\n"
    )
    yield "| by | median step, s | line | R^2 |"
    yield "|---|---|---|---|"
    for axis, points in found.items():
        slope, intercept, r2 = fit(points)
        row = ", ".join(f"{value}: {seconds:.3f}" for value, seconds in points)
        yield f"| {axis} | {row} | {intercept:.3f} s + {1000 * slope:.1f} ms each | {r2:.4f} |"
    yield ""


def plot(found: dict[str, list[tuple[int, float]]], file: Path) -> None:
    """Step times and their lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), squeeze=False, layout="constrained")
    for at, (axis, points) in zip(axes[0], found.items(), strict=True):
        slope, intercept, r2 = fit(points)
        x, y = zip(*points, strict=True)
        at.plot(x, [intercept + slope * v for v in x], color="0.6", linewidth=1)
        at.plot(x, y, "o")
        at.set(xlabel=axis, title=f"R² = {r2:.4f}", ylim=(0, None), xlim=(0, None))
    axes[0][0].set_ylabel("median step, s")
    figure.savefig(file, dpi=120)


def machine() -> str:
    """Versions and load, in one line."""
    names = ["torch", "transformers", *(["trl"] if have_trl() else [])]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, load {load}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small smoke test: no memory, no files")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side that count (default: 9)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before (default: 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.0, 0.05], help="without a reference, and with one")
    parser.add_argument("--sizes", nargs="+", default=["128x2", "256x4"], metavar="HIDDENxLAYERS")
    parser.add_argument("--micro", type=int, default=8, help="dialogues of one forward-backward pass (default: 8)")
    parser.add_argument("--no-scaling", action="store_true", help="leave our step against its size out")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--out", type=Path, help=f"folder of vs_trl.{{md,png,json}} (default: {RESULTS})")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone, Setting(**json.loads(options.setting)), options.steps)
        return
    base = Setting(threads=options.threads, micro=options.micro)
    shapes = {"dialogues": [8, 16, 32, 48, 64], "turns": [2, 4, 6, 8], "tokens": [8, 16, 24, 32, 48]}
    rounds, warmup, sizes = options.rounds, options.warmup, options.sizes
    if options.quick:
        base = replace(base, dialogues=8, turns=2, tokens=6, said=6, micro=4)
        shapes = {"dialogues": [8, 16], "turns": [2, 3], "tokens": [4, 8]}
        rounds, warmup, sizes = 2, 1, ["64x2"]
    before = machine()
    print(before, file=sys.stderr)
    report = [
        "# Our step beside TRL's and beside the floor\n",
        f"`python benchmarks/vs_trl.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
    ]
    everything: dict[str, Any] = {"before": before, "comparisons": []}
    for size in sizes:
        hidden, layers = map(int, size.split("x"))
        for kl in options.kl:
            setting = replace(base, hidden=hidden, layers=layers, kl=kl)
            print(f"{setting.name} ...", file=sys.stderr)
            found = compare(setting, rounds, warmup)
            if not (options.quick or options.no_memory):
                found["memory"] = {name: memory(name, setting, options.steps) for name in found["wall"]}
            everything["comparisons"].append(found)
            report += [*tell(found)]
            print("\n".join(tell(found)), flush=True)
    if not options.no_scaling:
        print("scaling ...", file=sys.stderr)
        setting = replace(base, hidden=int(sizes[0].split("x")[0]), layers=int(sizes[0].split("x")[1]))
        everything["scaling"] = scale(setting, rounds, shapes)
        report += [*tell_scaling(everything["scaling"], setting)]
        print("\n".join(tell_scaling(everything["scaling"], setting)))
    everything["after"] = machine()
    report.insert(2, f"\nBefore: {before}. After: {everything['after']}. Low priority, beside other work.\n")
    folder = options.out or (None if options.quick else RESULTS)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vs_trl.md").write_text("\n".join(report) + "\n", encoding="utf-8")
        (folder / "vs_trl.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        if "scaling" in everything:
            plot(everything["scaling"], folder / "vs_trl.png")


if __name__ == "__main__":
    main()
