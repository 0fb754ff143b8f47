"""Checks that sampled ids and log-probabilities are exact. They are cheap enough to run before every training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError
from rlver.inference.chat_format import ChatFormat
from rlver.inference.chat_template import tokenizer_name
from rlver.inference.decoder import LAYERS
from rlver.inference.sampler import Sampler

_CHUNKS = (((5, 7, 11), (13,)), ((17, 19), (23, 29, 31, 37)), ((2,), (3,)))
"""Token ids for two rows of a batch, one chunk after another. Every vocabulary contains them."""


@torch.no_grad()
def check_model(model: PreTrainedModel) -> None:
    """Compare sampling with a KV cache to plain forward passes, on a few tokens.

    Raises:
        RlverError: the architecture cannot be sampled from exactly.
    """
    config = model.config
    name = f"{model.name_or_path or type(model).__name__} (architecture {config.model_type})"
    if config._attn_implementation not in ("eager", "sdpa"):
        raise RlverError(
            f"{name}: attention {config._attn_implementation!r} takes no custom masks; load the model with 'sdpa'."
        )
    unknown = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if unknown:
        raise RlverError(f"{name}: layers of kind {', '.join(sorted(unknown))} cannot go back to an earlier turn.")
    training = model.training
    model.eval()
    try:
        with _narrow_window(model):
            gap, largest = _largest_gap(model)
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError, NotImplementedError) as error:
        raise RlverError(f"{name}: it cannot be sampled from turn by turn ({error}).") from error
    finally:
        model.train(training)
    if not gap <= (1e-3 if model.dtype == torch.float32 else 0.1) * max(1.0, largest):
        raise RlverError(
            f"{name}: sampled turn by turn, its logits are off by {gap:.2g}, so it cannot be trained; use a decoder "
            "such as Qwen, Llama, Mistral or Gemma."
        )


def check_dialogue(chat: ChatFormat, dialogue: Dialogue) -> None:
    """Check that the token ids of a dialogue agree with its texts and the chat template.

    Raises:
        RlverError: they differ. The message names the template and the turn.
    """
    context = chat.opening(dialogue.opening)
    for number, turn in enumerate(dialogue.turns, 1):
        where = f"{tokenizer_name(chat.tokenizer)}: with its chat template, turn {number} of a dialogue"
        tokens = turn.tokens
        if tokens is None:
            raise RlverError(f"{where} has no record of its token ids.")
        if tokens.prompt_ids != [*context, *chat.lead]:
            raise RlverError(f"{where} was not sampled after the ids of the messages before it.")
        if chat.decode(tokens.token_ids) != turn.raw:
            raise RlverError(f"{where} reads {turn.raw!r}, but its ids decode to {chat.decode(tokens.token_ids)!r}.")
        if turn.reaction is not None:
            context += chat.reply(turn.reply) if dialogue.think else chat.closed(tokens.token_ids)
            context += chat.turn(turn.reaction.utterance)


def _largest_gap(model: PreTrainedModel) -> tuple[float, float]:
    """Largest difference between logits of sampling and of plain forward passes, and the largest logit."""
    sampler = Sampler(model)
    contexts: list[list[int]] = [[], []]
    gaps, sizes = [], []
    for chunks in _CHUNKS:
        logits = sampler.feed(range(2), [len(context) for context in contexts], chunks)
        for context, chunk, sampled in zip(contexts, chunks, logits, strict=True):
            context += chunk
            expected = model(input_ids=torch.tensor([context], device=model.device), use_cache=False).logits[0, -1]
            gaps.append(float((sampled - expected).abs().max()))
            sizes.append(float(expected.abs().max()))
    return max(gaps), max(sizes)


@contextmanager
def _narrow_window(model: PreTrainedModel) -> Iterator[None]:
    """Make sliding windows so narrow that a few tokens show whether our masks agree with the model's own."""
    window = getattr(model.config, "sliding_window", None)
    if window:
        model.config.sliding_window = 3
    try:
        yield
    finally:
        if window:
            model.config.sliding_window = window
