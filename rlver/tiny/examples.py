"""Training examples for the tiny policy: token ids with a loss weight for each token that is trained.

There are three kinds: dialogues, hints that are answered by the first word of an apt act, and drills that train copying
with random tokens.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from rlver.core.dialogue import TokenRecord
from rlver.core.profile import Language
from rlver.core.think import CLOSE, OPEN
from rlver.inference.chat_format import ChatFormat
from rlver.tiny.author import Line, act_sentences
from rlver.tiny.corpus import WrittenDialogue, hint_lines
from rlver.train.batch import Sample, from_records

_NOISE_SHARE = 0.2
"""Share of a hint's tokens that are replaced by random ones. Otherwise the policy would memorise a few words of each
hint instead of using all of them."""
_HINT_WEIGHT = 4.0
"""Loss weight of the word that answers a hint. It is smaller than in a dialogue, because a batch has many hints."""


class Example(NamedTuple):
    """A sample and its loss weights."""

    sample: Sample
    weights: Tensor
    """(N,) loss weight of each trained token."""


def dialogue_example(written: WrittenDialogue, chat: ChatFormat, handle_weight: float, act_weight: float) -> Example:
    """A dialogue of the corpus as if the policy had sampled it.

    Args:
        handle_weight: loss weight of the tokens of a handle that the reply takes from the user's story.
        act_weight: loss weight of the first token of the act.
    """
    dialogue, lines = written
    context = chat.opening(dialogue.opening)
    records: list[TokenRecord] = []
    weights: list[float] = []
    for turn, line in zip(dialogue.turns, lines, strict=True):
        ids, reply_weights = weigh_reply(line, chat, handle_weight, act_weight)
        records.append(TokenRecord(list(context), ids, [0.0] * len(ids)))
        weights += reply_weights
        if turn.reaction is None or turn is dialogue.turns[-1]:
            break
        reply_ids = [*chat.text(turn.reply), chat.stop] if dialogue.think else ids  # later contexts hold no thoughts
        context += reply_ids + chat.turn(turn.reaction.utterance)
    return Example(from_records(records), torch.tensor(weights))


def weigh_reply(line: Line, chat: ChatFormat, handle_weight: float, act_weight: float) -> tuple[list[int], list[float]]:
    """Token ids of a reply with its closing token, and the loss weight of each id."""
    encoded = chat.tokenizer(line.raw, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    if line.handle:
        start = line.raw.rfind(line.handle)
        # The span includes the punctuation mark after the handle: where a copy ends is as hard to learn as its words.
        spans.append((start, start + len(line.handle) + 1, handle_weight))
    start = line.raw.rfind(line.first_sentence)
    spans.append((start, start + 2, act_weight))
    weights = [
        next((weight for begin, end, weight in spans if start < end and stop > begin), 1.0)
        for start, stop in encoded["offset_mapping"]
    ]
    return [*encoded["input_ids"], chat.stop], [*weights, 1.0]


def hint_batches(
    chat: ChatFormat, language: Language, think: bool, size: int, steps: int, rng: random.Random
) -> list[list[Example]]:
    """Batches of hints, each answered by the first token of an apt act. All hints are used before any is repeated.

    Args:
        size: number of hints in a batch.
        steps: number of batches.
    """
    vocabulary = len(chat.tokenizer)
    first_ids = {act: [chat.text(sentence)[0] for sentence in group] for act, group in act_sentences(language).items()}
    hints = [(chat.turn(hint), set(chat.text(hint)), first_ids[act]) for hint, act in hint_lines(language)]
    # If the policy thinks, the act follows the end of a thought.
    thought = chat.tokenizer.encode(OPEN + CLOSE, add_special_tokens=False) if think else []

    def example(turn_ids: list[int], hint_ids: set[int], answers: list[int]) -> Example:
        context = [
            rng.randrange(vocabulary) if token in hint_ids and rng.random() < _NOISE_SHARE else token
            for token in turn_ids
        ]
        context += thought
        sample = from_records([TokenRecord(context, [rng.choice(answers)], [0.0])])
        return Example(sample, torch.tensor([_HINT_WEIGHT]))

    batches: list[list[Example]] = []
    while len(batches) < steps:
        order = rng.sample(hints, len(hints))
        batches += [[example(*hint) for hint in order[i : i + size]] for i in range(0, len(order) - size + 1, size)]
    return batches[:steps]


def copying_drill(rng: random.Random, vocabulary: int) -> Example:
    """Random tokens, a run of random tokens, more random tokens, and the same run again, which is trained."""
    run, before, between = ([rng.randrange(vocabulary) for _ in range(rng.randint(4, 16))] for _ in range(3))
    record = TokenRecord([*before, *run, *between, run[0]], run[1:], [0.0] * (len(run) - 1))
    return Example(from_records([record]), torch.ones(len(run) - 1))


def batches_by_length(examples: list[Example], size: int, steps: int, rng: random.Random) -> list[list[Example]]:
    """Batches of examples of similar length. All examples are used before any is repeated.

    Args:
        size: number of examples in a batch.
        steps: number of batches.
    """
    batches: list[list[Example]] = []
    while len(batches) < steps:
        order = rng.sample(examples, len(examples))
        for start in range(0, len(order) - size + 1, 8 * size):
            by_length = sorted(order[start : start + 8 * size], key=lambda example: len(example.sample))
            chunk = [by_length[i : i + size] for i in range(0, len(by_length) - size + 1, size)]
            batches += rng.sample(chunk, len(chunk))
    return batches[:steps]
