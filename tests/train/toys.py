"""What the tests of training share: models of a few thousand weights, a user of letters, and small runs."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlver.core.dialogue import Dialogue, Opening, Reaction, TokenRecord
from rlver.inference.chat_format import ChatFormat
from rlver.policies.prompts import system_prompt
from rlver.train.config import TrainConfig
from rlver.train.trainer import Trainer

ROOT = Path(__file__).parents[2]
LINES = ["I see.", "It is not your fault.", "You did so well!", "Why did they do it?", "Calm down."]
SENTENCES = ["My sister laughed and the kettle broke.", "Nobody asked me why I did not sleep.", "你愿意说说吗？"]

algos = pytest.mark.parametrize("algo", ["grpo", "ppo"])
modes = pytest.mark.parametrize("think", [False, True], ids=["plain", "think"])


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


class Toy:
    """A user that likes replies with one of these letters in them, and leaves after some turns or earlier."""

    identity = "toy"

    def __init__(self, liked: str = "t", points: float = 10.0, leaves: bool = True, turns: int = 4) -> None:
        self.liked = liked
        self.points = points
        self.leaves = leaves
        self.turns = turns

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """Of different lengths."""
        return Opening(" ".join(SENTENCES[: 1 + seed % 2]))

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
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
    speakers: dict[bool, Qwen2ForCausalLM], words: PreTrainedTokenizerFast, user: Toy | None = None, **values: Any
) -> Trainer:
    """A trainer of a copy of a speaker."""
    config = configure(**values)
    return Trainer(config, copy.deepcopy(speakers[config.think]), words, user or Toy())


def weights_of(model: torch.nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient_of(model: torch.nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def records_of(dialogue: Dialogue) -> list[TokenRecord]:
    """How each reply of a dialogue was sampled."""
    return [turn.tokens for turn in dialogue.turns if turn.tokens is not None]


def turn_logprobs(model: Any, dialogue: Dialogue) -> list[Tensor]:
    """Log-probabilities of each reply's tokens, by one plain forward pass per turn."""
    logprobs = []
    for record in records_of(dialogue):
        ids = torch.tensor([record.prompt_ids + record.token_ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(record.prompt_ids) - 1 : -1]
        logprobs.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(record.token_ids)[:, None])[:, 0])
    return logprobs


def standardised(rewards: list[float], group: int) -> list[float]:
    """GRPO's advantages for the final rewards."""
    table = np.array(rewards).reshape(-1, group)
    centred, deviation = table - table.mean(1, keepdims=True), table.std(1, keepdims=True)
    return np.where(deviation > 1e-6, centred / (deviation + 1e-6), 0.0).flatten().tolist()


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
