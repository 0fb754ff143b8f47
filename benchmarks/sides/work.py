"""The task that all sides share: the size of the model and of a step, the user, the tokenizer and the model."""

from __future__ import annotations

import random
import resource
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlver.core.data import read_text
from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import Preset
from rlver.core.profile import Profile
from rlver.inference.chat_format import ChatFormat
from rlver.policies.prompts import system_prompt
from rlver.stories import load_stories
from rlver.stories.generate import generate
from rlver.tiny.tokenizer import train_tokenizer

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
        """The setting in words."""
        return f"hidden {self.hidden}, {self.layers} layers, kl {self.kl:g}"


@dataclass
class Counts:
    """The work of a side in one step."""

    sampled: int
    """Tokens sampled."""
    trained: int
    """Tokens with a loss."""
    passed: int
    """Tokens of the sequences that the update ran over, padding included."""


class Patient:
    """A simulated user that repeats one line at once and never leaves. The letters of a reply move the emotion.

    Every profile has a line of its own, and all lines are equally long.
    """

    identity = "patient"

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def line(self, profile: Profile) -> str:
        """What the user of this profile says."""
        return make_line(self.tokens, profile.id)

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The line."""
        return Opening(self.line(dialogue.profile))

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """The line, and points that differ from reply to reply."""
        change = sum(map(ord, dialogue.turns[-1].reply)) % 11 - 5
        return Reaction(change=change, utterance=self.line(dialogue.profile))


def patient(setting: Setting) -> Preset:
    """A preset with which every dialogue has all its turns, and rewards differ."""
    return Preset(
        name="patient", start=50, clamp=10, floor=0, fails_below=-1, ends_at_success=False, replies=setting.turns
    )


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as the tiny policy has it, with its whole vocabulary of 3,072."""
    stories = [story.model_dump_json() for story in load_stories("en", "train")]
    return train_tokenizer([LINE, read_text("rlver.users.embedded", "data/reference.en.txt"), *stories])


@cache
def make_line(tokens: int, seed: str = "") -> str:
    """A line of exactly this many tokens, which decoding and encoding again do not change."""
    tokenizer, rng, words = make_tokenizer(), random.Random(seed), LINE.split()
    for _ in range(100):
        ids = tokenizer.encode(" ".join(rng.choices(words, k=tokens)), add_special_tokens=False)[:tokens]
        line = str(tokenizer.decode(ids))
        if tokenizer.encode(line, add_special_tokens=False) == ids:
            return line
    raise RuntimeError(f"there is no line of {tokens} tokens")


def make_model(setting: Setting, seed: int = 0, **shape: Any) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights that never samples a special token, so that no reply ends early.

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
    """Make special tokens improbable: their logits fall with a hidden dimension that is large at every token."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight[:, 0] = 1.0
        layer.weight[make_tokenizer().all_special_ids, 0] = -1.0


@cache
def make_chat() -> ChatFormat:
    """The chat format of the tiny policy."""
    return ChatFormat(make_tokenizer(), system_prompt("en", False))


def peak_memory() -> float:
    """Peak memory of this process, in bytes."""
    try:
        # The peak of `getrusage` in a new process begins with the memory of the process that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8").split()
        return 1024.0 * int(status[status.index("VmHWM:") + 1])
    except (OSError, ValueError):
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@cache
def profiles_of(setting: Setting) -> list[Profile]:
    """One profile per group."""
    return generate("en", "train", setting.dialogues // setting.group, 0)
