"""Pretraining of the tiny policy: a real Qwen2 model of under a million parameters, from random weights, in minutes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Language
from rlver.core.seeds import derive
from rlver.inference.chat_format import ChatFormat
from rlver.inference.cores import Cores
from rlver.policies.prompts import system_prompt
from rlver.tiny.corpus import WrittenDialogue, hint_lines, write_corpus, write_exchanges
from rlver.tiny.examples import Example, batches_by_length, copying_drill, dialogue_example, hint_batches
from rlver.tiny.model import build_model
from rlver.tiny.muon import Muon
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.batch import collate, micro_batches
from rlver.train.forward import Backward, accumulate_gradients, hidden_states

_MICRO_TOKENS = 1000
"""Largest number of tokens of a micro-batch. It is small, so that the micro-batches of a step occupy two cores."""


class PretrainConfig(BaseModel):
    """Everything that determines the base policy.

    Pretraining has four stages: hints, single exchanges, short dialogues and whole dialogues. With the defaults it
    takes two to three minutes on two cores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Language = "en"
    think: bool = False
    """Whether the policy thinks before its replies."""
    seed: int = 0
    hint_steps: int = 150
    """Steps of the first stage, on hints alone: a sentence that hints, with a fifth of its tokens replaced by noise,
    and the first word of an apt reply. It teaches within seconds what the user's words call for. In long dialogues, the
    model would hardly ever learn it."""
    exchange_steps: int = 150
    """Steps of the second stage, on single exchanges: one utterance and a good reply. Here the model learns to copy."""
    short_steps: int = 300
    """Steps of the third stage, on single exchanges and on dialogues of two turns in which most replies are good."""
    steps: int = 300
    """Steps of the last stage, on short dialogues and on whole ones, which are those of the base policy."""
    dialogues: int = 800
    """Number of whole dialogues in the corpus. There are three times as many short ones and four times as many single
    exchanges."""
    batch: int = 6
    """Unit of the size of a batch. A batch has 16 times as many hints in the first stage, 4 times as many exchanges in
    the second, once as many exchanges and once as many short dialogues in the third, and a third as many short and two
    thirds as many whole dialogues in the last. After the first stage, a batch also has 6 times as many hints."""
    drills: int = 4
    """Number of copying drills in each batch. Their tokens are random, so that the model learns to copy any word,
    and not only those of the corpus."""
    lr: float = 2.5e-3
    """Peak learning rate of AdamW. The learning-rate schedule is a linear warm-up over 3 % of the steps and a linear
    decay over the second half."""
    matrix_lr: float = 0.006
    """Peak learning rate of Muon, which trains the weight matrices, with the same schedule. Muon needs about a third
    fewer steps than AdamW."""
    handle_weight: float = 4.0
    """Loss weight of the words that a reply takes from the user's story."""
    act_weight: float = 16.0
    """Loss weight of the first word of a reply's act. This one token among many decides what the reply does."""
    hidden: int = 128
    """Size of the residual stream."""
    layers: int = 2
    heads: int = 4
    """Attention heads per layer."""
    head_size: int = 32
    feedforward: int = 256
    """Size of the feed-forward layers."""


def pretrain(config: PretrainConfig, folder: Path, on_step: Callable[[int, int, float], None] | None = None) -> Path:
    """Write a corpus, train a tokenizer and a model on it, and save both to `folder`. Returns the folder.

    Args:
        on_step: called with (step, number of steps, loss in nats per token) after each step.
    """
    exchanges, short_dialogues, whole_dialogues = _write_dialogues(config)
    tokenizer = _train_tokenizer(config, whole_dialogues)
    chat = ChatFormat(tokenizer, system_prompt(config.language, config.think))
    weights_seed = derive(config.seed, "weights")
    shape = (config.hidden, config.layers, config.heads, config.head_size, config.feedforward)
    torch.set_num_threads(1)  # with several threads, the factorisation of a matrix rounds differently
    model = build_model(tokenizer, weights_seed, *shape)
    cores = Cores(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = {
        Muon(matrices): config.matrix_lr,
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01): config.lr,
    }

    def examples(written: Iterable[WrittenDialogue]) -> list[Example]:
        return [dialogue_example(each, chat, config.handle_weight, config.act_weight) for each in written]

    total = config.hint_steps + config.exchange_steps + config.short_steps + config.steps
    batches = _batches(config, chat, examples(exchanges), examples(short_dialogues), examples(whole_dialogues))
    model.train()
    for step, batch in enumerate(batches):
        loss = _add_gradients(model, cores, batch)
        rate = min(1.0, (step + 1) / (0.03 * total), 2 * (1 - step / total))
        for optimizer, lr in optimizers.items():
            optimizer.param_groups[0]["lr"] = lr * rate
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if on_step:
            on_step(step, total, loss)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrain.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder


def _write_dialogues(
    config: PretrainConfig,
) -> tuple[list[WrittenDialogue], list[WrittenDialogue], list[WrittenDialogue]]:
    """The corpus: single exchanges, short dialogues and whole dialogues."""
    exchanges = write_exchanges(config.language, config.think, 4 * config.dialogues, config.seed)
    short = write_corpus(
        config.language,
        config.think,
        3 * config.dialogues,
        derive(config.seed, "short"),
        good_share=0.85,
        replies=2,
        user_types=("vanilla",),
    )
    whole = write_corpus(config.language, config.think, config.dialogues, config.seed)
    return exchanges, short, whole


def _train_tokenizer(config: PretrainConfig, written: Iterable[WrittenDialogue]) -> PreTrainedTokenizerFast:
    texts = [text for dialogue, _ in written for text in _texts_without_handles(dialogue)]
    return train_tokenizer([*texts, *(hint for hint, _ in hint_lines(config.language))])


def _texts_without_handles(dialogue: Dialogue) -> list[str]:
    """The messages and replies of a dialogue, without the handles of the user's story.

    Leaving them out keeps these handles as many tokens long as those of stories that training never meets. The policy
    then copies them instead of memorising them.
    """
    texts = [message.content for message in dialogue.messages()] + [turn.raw for turn in dialogue.turns]
    for fact in dialogue.profile.story.facts:
        texts = [text.replace(fact.handle, "") for text in texts]
    return texts


def _batches(
    config: PretrainConfig,
    chat: ChatFormat,
    exchanges: list[Example],
    short_dialogues: list[Example],
    whole_dialogues: list[Example],
) -> Iterator[list[Example]]:
    """The batch of each step of the four stages."""
    rng, vocabulary = random.Random(derive(config.seed, "batches")), len(chat.tokenizer)
    size, third = config.batch, max(1, config.batch // 3)
    later_steps = config.exchange_steps + config.short_steps + config.steps

    def hints(count: int, steps: int) -> list[list[Example]]:
        return hint_batches(chat, config.language, config.think, count, steps, rng)

    def draw(examples: list[Example], count: int, steps: int) -> list[list[Example]]:
        return batches_by_length(examples, count, steps, rng)

    stages = (
        [hints(16 * size, config.hint_steps)],
        [draw(exchanges, 4 * size, config.exchange_steps)],
        [draw(exchanges, size, config.short_steps), draw(short_dialogues, size, config.short_steps)],
        [draw(short_dialogues, third, config.steps), draw(whole_dialogues, size - third, config.steps)],
    )
    additional_hints: list[list[Example]] = [[]] * config.hint_steps + hints(6 * size, later_steps)
    for step, parts in enumerate(parts for stage in stages for parts in zip(*stage, strict=True)):
        drills = [copying_drill(rng, vocabulary) for _ in range(config.drills)]
        yield [example for part in (additional_hints[step], drills, *parts) for example in part]


def _add_gradients(model: Qwen2ForCausalLM, cores: Cores, examples: list[Example]) -> float:
    """Add the gradients of the weighted mean loss of a batch. Returns the unweighted mean loss in nats per token."""
    total_weight = sum(float(example.weights.sum()) for example in examples)

    def compute(part: list[int], backward: Backward) -> float:
        batch = collate([examples[i].sample for i in part])
        logits = model.lm_head(hidden_states(model, batch))
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        backward((losses * torch.cat([examples[i].weights for i in part])).sum() / total_weight)
        return float(losses.detach().sum())

    parts = micro_batches([example.sample for example in examples], _MICRO_TOKENS)
    losses = accumulate_gradients(compute, parts, list(model.parameters()), cores)
    return sum(losses) / sum(len(example.weights) for example in examples)
