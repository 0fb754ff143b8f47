"""Pretraining of the tiny policy: a real Qwen2 model of under a million parameters, from nothing, in minutes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import Qwen2ForCausalLM

from rlver.core.dialogue import Dialogue, TokenRecord
from rlver.core.profile import Language
from rlver.core.seeds import derive
from rlver.core.think import CLOSE, OPEN
from rlver.inference.chat_format import ChatFormat
from rlver.inference.cores import Cores
from rlver.policies.prompts import system_prompt
from rlver.tiny.corpus import Line, Written, act_sentences, hint_lines, write_corpus, write_exchanges
from rlver.tiny.model import build_model
from rlver.tiny.muon import Muon
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.batch import Sample, collate, from_records, micro_batches
from rlver.train.forward import Backward, accumulate_gradients, hidden_states

_MICRO_TOKENS = 1000
"""Most tokens of one pass: small enough that a step's passes keep two cores busy."""


class PretrainConfig(BaseModel):
    """What decides the base policy. The defaults take two to three minutes on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Language = "en"
    think: bool = False
    seed: int = 0
    hint_steps: int = 150
    """Steps on hints alone: a line that lets the need show, a fifth of its words lost, and the word with which an apt
    reply begins. What the user's words call for is learned here in seconds, and hardly ever where it has to be found
    in a long talk first."""
    exchange_steps: int = 150
    """Steps on single exchanges: one line of the user and a good reply, which is where copying is learned."""
    short_steps: int = 300
    """Steps on dialogues of two turns in which most replies are good, and on exchanges."""
    steps: int = 300
    """Steps on whole dialogues as the base policy shall lead them, and on short ones."""
    dialogues: int = 800
    """Whole dialogues in the corpus; short ones are three times as many, exchanges four times."""
    batch: int = 6
    """Size of a step: sixteen times as many hints in the first stage, four times as many exchanges in the second, as
    many exchanges and as many short dialogues in the third, a third as many short and two thirds as many whole ones in
    the last; and six times as many hints beside them in all but the first."""
    drills: int = 4
    """Sequences of random tokens in each batch, to be copied: whatever the words that training meets, the skill stays
    that of copying any."""
    lr: float = 2.5e-3
    """Peak learning rate of AdamW; linear warm-up over 3 % of the steps, linear decay over the second half."""
    matrix_lr: float = 0.006
    """Peak learning rate of Muon, which trains the weight matrices: it needs about a third fewer steps."""
    handle_weight: float = 4.0
    """Loss weight of the words that a reply takes from the user's story."""
    act_weight: float = 16.0
    """Loss weight of the word that begins a reply's act: what to do for whom is decided there, in one token of many."""
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    head_size: int = 32
    feedforward: int = 256


def pretrain(config: PretrainConfig, folder: Path, on_step: Callable[[int, int, float], None] | None = None) -> Path:
    """Write a corpus, train tokenizer and model on it, and save both to `folder`, which is returned.

    Args:
        on_step: called with (step, steps in all, loss in nats per token) after each step.
    """
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
    texts = [text for dialogue, _ in whole for text in _texts(dialogue)]
    tokenizer = train_tokenizer([*texts, *(hint for hint, _ in hint_lines(config.language))])
    chat = ChatFormat(tokenizer, system_prompt(config.language, config.think))
    weights_seed = derive(config.seed, "weights")
    shape = (config.hidden, config.layers, config.heads, config.head_size, config.feedforward)
    torch.set_num_threads(1)  # several round the factors of a matrix in another way
    model = build_model(tokenizer, weights_seed, *shape)
    cores = Cores(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = {
        Muon(matrices): config.matrix_lr,
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01): config.lr,
    }
    rng, vocabulary = random.Random(derive(config.seed, "batches")), len(tokenizer)

    def examples(written: list[Written]) -> list[Example]:
        return [_example(*item, chat, config) for item in written]

    single, double = examples(exchanges), examples(short)
    size, third, between, late = config.batch, max(1, config.batch // 3), config.short_steps, config.steps
    total = config.hint_steps + config.exchange_steps + between + late
    many, few = config.hint_steps, total - config.hint_steps
    stages = (
        [_hint_batches(chat, config, 16 * size, many, rng)],
        [_batches(single, 4 * size, config.exchange_steps, rng)],
        [_batches(single, size, between, rng), _batches(double, size, between, rng)],
        [_batches(double, third, late, rng), _batches(examples(whole), size - third, late, rng)],
    )
    beside: list[list[Example]] = [[]] * many + _hint_batches(chat, config, 6 * size, few, rng)
    model.train()
    for step, parts in enumerate(parts for stage in stages for parts in zip(*stage, strict=True)):
        drills = [_drill(rng, vocabulary) for _ in range(config.drills)]
        loss = _add_gradients(model, cores, [example for group in (beside[step], drills, *parts) for example in group])
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


def _add_gradients(model: Qwen2ForCausalLM, cores: Cores, examples: list[Example]) -> float:
    """Gradients of the weighted mean loss of a step's examples. Returns the plain mean, in nats per token."""
    whole = sum(float(weights.sum()) for _, weights in examples)

    def work(part: list[int], backward: Backward) -> float:
        batch = collate([examples[i][0] for i in part])
        logits = model.lm_head(hidden_states(model, batch))
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        backward((losses * torch.cat([examples[i][1] for i in part])).sum() / whole)
        return float(losses.detach().sum())

    parts = micro_batches([sample for sample, _ in examples], _MICRO_TOKENS)
    losses = accumulate_gradients(work, parts, list(model.parameters()), cores)
    return sum(losses) / sum(len(weights) for _, weights in examples)


def _texts(dialogue: Dialogue) -> list[str]:
    """What is said in a dialogue but for the things of the story: they shall be as many pieces long as those of
    stories that training never meets, so that they are copied rather than known."""
    texts = [message.content for message in dialogue.messages()] + [turn.raw for turn in dialogue.turns]
    for fact in dialogue.profile.story.facts:
        texts = [text.replace(fact.handle, "") for text in texts]
    return texts


Example = tuple[Sample, Tensor]
"""A sample and the loss weight of each of its trained tokens."""


def _batches(examples: list[Example], size: int, steps: int, rng: random.Random) -> list[list[Example]]:
    """Batches of examples of about the same length; all are met before any comes again."""
    batches: list[list[Example]] = []
    while len(batches) < steps:
        order = rng.sample(examples, len(examples))
        for start in range(0, len(order) - size + 1, 8 * size):
            alike = sorted(order[start : start + 8 * size], key=lambda example: len(example[0]))
            chunk = [alike[i : i + size] for i in range(0, len(alike) - size + 1, size)]
            batches += rng.sample(chunk, len(chunk))
    return batches[:steps]


_LOST = 0.2
"""Share of a hint's tokens that are replaced by random ones: every word must do its part, not a few known by heart."""
_HINT_WEIGHT = 4.0
"""Loss weight of the word that answers a hint. Hints come by the dozen, so it is less than in a dialogue."""


def _hint_batches(
    chat: ChatFormat, config: PretrainConfig, size: int, steps: int, rng: random.Random
) -> list[list[Example]]:
    """Batches of hints, each answered by the first word of an apt act; all are met before any comes again."""
    vocabulary = len(chat.tokenizer)
    firsts = {act: [chat.text(deed)[0] for deed in deeds] for act, deeds in act_sentences(config.language).items()}
    hints = [(chat.turn(hint), set(chat.text(hint)), firsts[act]) for hint, act in hint_lines(config.language)]
    # With thinking, the act follows the end of a thought.
    thought = chat.tokenizer.encode(OPEN + CLOSE, add_special_tokens=False) if config.think else []

    def example(turn: list[int], words: set[int], first: list[int]) -> Example:
        context = [rng.randrange(vocabulary) if token in words and rng.random() < _LOST else token for token in turn]
        context += thought
        sample = from_records([TokenRecord(context, [rng.choice(first)], [0.0])])
        return sample, torch.tensor([_HINT_WEIGHT])

    batches: list[list[Example]] = []
    while len(batches) < steps:
        order = rng.sample(hints, len(hints))
        batches += [[example(*hint) for hint in order[i : i + size]] for i in range(0, len(order) - size + 1, size)]
    return batches[:steps]


def _drill(rng: random.Random, vocabulary: int) -> Example:
    """Noise, a run of random tokens, noise, the same run: the second run can be told from the first."""
    run, before, between = ([rng.randrange(vocabulary) for _ in range(rng.randint(4, 16))] for _ in range(3))
    record = TokenRecord([*before, *run, *between, run[0]], run[1:], [0.0] * (len(run) - 1))
    return from_records([record]), torch.ones(len(run) - 1)


def _example(dialogue: Dialogue, lines: list[Line], chat: ChatFormat, config: PretrainConfig) -> Example:
    """A dialogue as the policy would have sampled it, with the loss weight of each token."""
    context = chat.opening(dialogue.opening)
    records: list[TokenRecord] = []
    weights: list[float] = []
    for turn, line in zip(dialogue.turns, lines, strict=True):
        ids, weight = _weigh(line, chat, config.handle_weight, config.act_weight)
        records.append(TokenRecord(list(context), ids, [0.0] * len(ids)))
        weights += weight
        if turn.reaction is None or turn is dialogue.turns[-1]:
            break
        said = [*chat.text(turn.reply), chat.stop] if dialogue.think else ids
        context += said + chat.turn(turn.reaction.utterance)
    return from_records(records), torch.tensor(weights)


def _weigh(line: Line, chat: ChatFormat, handle_weight: float, act_weight: float) -> tuple[list[int], list[float]]:
    """Token ids of a reply with its closing mark, and their loss weights."""
    encoded = chat.tokenizer(line.raw, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    if line.handle:
        at = line.raw.rfind(line.handle)
        # And of the mark behind it: where to stop is as hard as what to say.
        spans.append((at, at + len(line.handle) + 1, handle_weight))
    at = line.raw.rfind(line.start)
    spans.append((at, at + 2, act_weight))
    weights = [
        next((weight for begin, end, weight in spans if start < end and stop > begin), 1.0)
        for start, stop in encoded["offset_mapping"]
    ]
    return [*encoded["input_ids"], chat.stop], [*weights, 1.0]
