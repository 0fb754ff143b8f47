"""Pretraining of the tiny policy: a real Qwen2 model of under a million parameters, from nothing, in minutes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Language
from rlver.core.seeds import derive
from rlver.policies.chat import ChatFormat
from rlver.policies.local import Reply, Trace
from rlver.policies.prompts import system_prompt
from rlver.tiny.corpus import Line, write_corpus
from rlver.tiny.model import build_model
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.samples import Sample, collate, from_trace, hidden_states


class PretrainConfig(BaseModel):
    """What decides the base policy. The defaults take about two minutes on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Language = "en"
    think: bool = False
    seed: int = 0
    drill_steps: int = 60
    """Steps of copying random tokens: the skill without the words. It decides whether a thing that training never
    met can be taken up later."""
    short_steps: int = 220
    """Steps on dialogues of three turns in which most replies take up something of the user's story."""
    steps: int = 200
    """Steps on whole dialogues as the base policy shall lead them."""
    dialogues: int = 1000
    """Whole dialogues in the corpus, and as many short ones."""
    batch: int = 8
    """Whole dialogues a step; short ones are twice as many."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; linear warm-up over 5 % of the steps, then cosine decay."""
    matrix_lr: float = 0.02
    """Peak learning rate of Muon, which trains the weight matrices: it needs about a third fewer steps."""
    marked_weight: float = 4.0
    """Loss weight of the words that a reply takes from the user's story, and of those that begin its act: the two
    places where a reply depends on what the user said."""
    hidden: int = 128
    layers: int = 2
    heads: int = 2
    head_size: int = 32
    feedforward: int = 256


def pretrain(config: PretrainConfig, folder: Path, on_step: Callable[[int, int, float], None] | None = None) -> Path:
    """Write a corpus, train tokenizer and model on it, and save both to `folder`, which is returned.

    Args:
        on_step: called with (step, steps in all, loss in nats per token) after each step.
    """
    whole = write_corpus(config.language, config.think, config.dialogues, config.seed)
    short = write_corpus(
        config.language,
        config.think,
        config.dialogues,
        derive(config.seed, "short"),
        good_share=0.7,
        replies=3,
        users=("vanilla",),
    )
    tokenizer = train_tokenizer(text for dialogue, _ in whole for text in _texts(dialogue))
    chat = ChatFormat(tokenizer, system_prompt(config.language, config.think))
    weights_seed = derive(config.seed, "weights")
    shape = (config.hidden, config.layers, config.heads, config.head_size, config.feedforward)
    model = build_model(tokenizer, weights_seed, *shape)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = {
        torch.optim.Muon(matrices, weight_decay=0.01): config.matrix_lr,
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01): config.lr,
    }
    rng = random.Random(derive(config.seed, "batches"))
    stages = (
        [[_drill(rng, len(tokenizer)) for _ in range(4 * config.batch)] for _ in range(config.drill_steps)],
        _batches([_example(*item, chat, config) for item in short], 2 * config.batch, config.short_steps, rng),
        _batches([_example(*item, chat, config) for item in whole], config.batch, config.steps, rng),
    )
    total = sum(map(len, stages))
    model.train()
    for step, examples in enumerate(batch for stage in stages for batch in stage):
        rate = min(1.0, (step + 1) / (0.05 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
        for optimizer, lr in optimizers.items():
            optimizer.param_groups[0]["lr"] = lr * rate
        batch = collate([sample for sample, _ in examples])
        weights = torch.cat([weight for _, weight in examples])
        logits = model.lm_head(hidden_states(model, batch))
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if on_step:
            on_step(step, total, float(losses.detach().mean()))
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrain.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder


def _texts(dialogue: Dialogue) -> list[str]:
    return [message.content for message in dialogue.messages()] + [turn.raw for turn in dialogue.turns]


Example = tuple[Sample, Tensor]
"""A sample and the loss weight of each of its trained tokens."""


def _batches(examples: list[Example], size: int, steps: int, rng: random.Random) -> list[list[Example]]:
    """Batches of examples; all are met before any comes again."""
    order: list[Example] = []
    while len(order) < size * steps:
        order += rng.sample(examples, len(examples))
    return [order[i * size : (i + 1) * size] for i in range(steps)]


def _drill(rng: random.Random, vocabulary: int) -> Example:
    """Noise, a run of random tokens, noise, the same run: the second run can be told from the first."""
    run, before, between = ([rng.randrange(vocabulary) for _ in range(rng.randint(4, 24))] for _ in range(3))
    start = len(before) + len(run) + len(between)
    reply = Reply(start + 1, run[1:], [0.0] * (len(run) - 1))
    sample = from_trace(Trace(context=[*before, *run, *between, run[0]], replies=[reply]))
    return sample, torch.ones(len(run) - 1)


def _example(dialogue: Dialogue, lines: list[Line], chat: ChatFormat, config: PretrainConfig) -> Example:
    """A dialogue as the policy would have sampled it, with the loss weight of each token."""
    trace = Trace(context=chat.opening(dialogue.opening))
    weights: list[float] = []
    for turn, line in zip(dialogue.turns, lines, strict=True):
        ids, weight = _weigh(line, chat, config.marked_weight)
        trace.replies.append(Reply(len(trace.context), ids, [0.0] * len(ids)))
        weights += weight
        if turn.reaction is None or turn is dialogue.turns[-1]:
            break
        said = [*chat.text(turn.reply), chat.stop] if dialogue.think else ids
        trace.context += said + chat.turn(turn.reaction.utterance)
    return from_trace(trace), torch.tensor(weights)


def _weigh(line: Line, chat: ChatFormat, marked: float) -> tuple[list[int], list[float]]:
    """Token ids of a reply with its closing mark, and their loss weights."""
    encoded = chat.tokenizer(line.raw, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    if line.handle:
        at = line.raw.rfind(line.handle)
        spans.append((at, at + len(line.handle)))
    if line.deed:
        at = line.raw.rfind(line.deed)
        spans.append((at, at + max(4, len(line.deed) // 3)))
    weights = [
        marked if any(start < end and stop > begin for begin, end in spans) else 1.0
        for start, stop in encoded["offset_mapping"]
    ]
    return [*encoded["input_ids"], chat.stop], [*weights, 1.0]
