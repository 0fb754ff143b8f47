"""What the benchmarks of training compare: one step of GRPO by our trainer, by TRL's, and by bare loops, the floor.

All train the same Qwen2 model with random weights on dialogues with the same user. No reply can close early, so that
every side samples the same number of tokens.
"""

from __future__ import annotations

import logging
import random
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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
    """A user who always says the same, answers at once and never leaves; the letters of a reply move the emotion.

    Every profile has a line of its own, and all are as long.
    """

    identity = "patient"

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def line(self, profile: Profile) -> str:
        """What the user of this profile says."""
        return make_line(self.tokens, profile.id)

    def open(self, profile: Profile, seed: int) -> Opening:
        """The line."""
        return Opening(self.line(profile), None, False)

    def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """The line, and points that differ from reply to reply."""
        change = sum(map(ord, dialogue.turns[-1].reply)) % 11 - 5
        return Reaction(change=change, utterance=self.line(dialogue.profile))


def patient(setting: Setting) -> Preset:
    """With it every dialogue has all its turns, and rewards differ."""
    return Preset(
        name="patient", start=50, clamp=10, floor=0, fails_below=-1, ends_at_success=False, replies=setting.turns
    )


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as the tiny policy has it, with its whole vocabulary of 3,072."""
    stories = [story.model_dump_json() for story in load_stories("en", "train")]
    return train_tokenizer([LINE, read_text("rlver.agents", "data/reference.en.txt"), *stories])


@cache
def make_line(tokens: int, seed: str = "") -> str:
    """A line of exactly so many tokens, also when it is written and read again."""
    tokenizer, rng, words = make_tokenizer(), random.Random(seed), LINE.split()
    for _ in range(100):
        ids = tokenizer.encode(" ".join(rng.choices(words, k=tokens)), add_special_tokens=False)[:tokens]
        line = str(tokenizer.decode(ids))
        if tokenizer.encode(line, add_special_tokens=False) == ids:
            return line
    raise RuntimeError(f"found no line of {tokens} tokens")


def make_model(setting: Setting, seed: int = 0, **shape: Any) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights that never samples a mark, so that no reply closes early.

    Args:
        shape: fields of `Qwen2Config` that replace those of a tiny model.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    tiny = {
        "vocab_size": len(tokenizer),
        "hidden_size": setting.hidden,
        "intermediate_size": 2 * setting.hidden,
        "num_hidden_layers": setting.layers,
        "num_attention_heads": setting.hidden // 32,
        "num_key_value_heads": setting.hidden // 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    marks = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**tiny | shape, **marks))
    never_close(model)
    return model.eval()


@torch.no_grad()
def never_close(model: Qwen2ForCausalLM) -> None:
    """One direction of the residual stream points up wherever a word stands, and a mark's own logit looks down it."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight[:, 0] = 1.0
        layer.weight[make_tokenizer().all_special_ids, 0] = -1.0


@cache
def make_chat() -> ChatFormat:
    """The chat format of the tiny policy."""
    return ChatFormat(make_tokenizer(), system_prompt("en", False))


def peak_memory() -> float:
    """Most bytes of memory that this process ever had."""
    try:
        # What `getrusage` tells of a new process begins with the memory of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8").split()
        return 1024.0 * int(status[status.index("VmHWM:") + 1])
    except (OSError, ValueError):
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# The sides. Ours and the floor have `step()`, which does one step of GRPO, and `count()`, which tells what it did.


class Ours:
    """Our trainer, of a model of its own unless one is given; `extra` are further keys of its configuration."""

    def __init__(self, setting: Setting, model: Qwen2ForCausalLM | None = None, **extra: Any) -> None:
        self.setting = setting
        PRESETS["patient"] = patient(setting)
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
            **extra,
        )
        model = model or make_model(setting)
        user = Patient(setting.said)
        self.trainer = Trainer(config, model, make_tokenizer(), user, profiles_of(setting))
        # The trainer shares out its cores in its own way; the other sides leave that to torch.
        self.threads = torch.get_num_threads()
        torch.set_num_threads(setting.threads)
        self.number = 0

    def step(self) -> None:
        """One step."""
        torch.set_num_threads(self.threads)
        self.trainer.step(self.number)
        torch.set_num_threads(self.setting.threads)
        self.number += 1

    def count(self) -> Counts:
        """Counts of the last step."""
        traces = self.trainer.traces
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
        self.seconds = dict(zip(self.seconds, (b - a for a, b in pairwise(times)), strict=True))

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


class Played(NamedTuple):
    """Dialogues that `generate` has played: ids of each, and the dialogues themselves."""

    prompts: list[list[int]]
    completions: list[list[int]]
    masks: list[list[int]]
    """1 for each token of a completion that the model sampled, 0 for those of the user and of the template."""
    dialogues: list[Dialogue]


def play_with_generate(model: Qwen2ForCausalLM, setting: Setting, profiles: Sequence[Profile], keep: bool) -> Played:
    """Play dialogues as users of `generate` do: it is called once a turn for all of them.

    With `keep`, the cache goes from turn to turn, so that `generate` encodes only what is new; without, it encodes
    the whole context again. The user is ours, and is asked as our rollout asks it.
    """
    chat, agent = make_chat(), Patient(setting.said)
    dialogues = [Dialogue(profile, patient(setting)) for profile in profiles]
    for dialogue in dialogues:
        dialogue.begin(*agent.open(dialogue.profile, 0))
    prompts = [chat.opening(dialogue.opening) for dialogue in dialogues]
    completions: list[list[int]] = [[] for _ in dialogues]
    masks: list[list[int]] = [[] for _ in dialogues]
    past = DynamicCache(config=model.config) if keep else None
    for turn in range(setting.turns):
        ids = torch.tensor([p + c for p, c in zip(prompts, completions, strict=True)], device=model.device)
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
    return Played(prompts, completions, masks, dialogues)


@dataclass
class Rollout:
    """A `rollout_func` for TRL. The log-probs of sampling are left out: without vLLM, TRL does not use them."""

    setting: Setting
    keep: bool = True
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    seconds: float = 0.0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """As TRL calls it, with one prompt per dialogue: the number of its profile."""
        began = time.perf_counter()
        profiles = profiles_of(self.setting)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        model.eval()
        played = play_with_generate(model, self.setting, [profiles[int(prompt)] for prompt in prompts], self.keep)
        model.train(training)
        sampled = sum(map(sum, played.masks))
        longest = max(map(len, played.prompts)) + max(map(len, played.completions))
        self.counts = Counts(sampled, sampled, longest * len(prompts))
        self.seconds = time.perf_counter() - began
        return {
            "prompt_ids": played.prompts,
            "completion_ids": played.completions,
            "logprobs": None,
            "env_mask": played.masks,
            "earned": [dialogue.reward for dialogue in played.dialogues],
        }


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
