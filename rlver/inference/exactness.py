"""Checks that a policy's numbers are what they seem to be: cheap enough to make before a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError
from rlver.inference.chat_format import ChatFormat
from rlver.inference.chat_template import name_of
from rlver.inference.decoder import LAYERS
from rlver.inference.sampler import Sampler

_FED = (((5, 7, 11), (13,)), ((17, 19), (23, 29, 31, 37)), ((2,), (3,)))
"""Tokens that two rows of a batch get one after another; every vocabulary has that many."""


@torch.no_grad()
def check_model(model: PreTrainedModel) -> None:
    """Compare sampling with a cache to plain forward passes, on a few tokens.

    Raises:
        RlverError: the model's architecture is none that we sample from exactly.
    """
    config = model.config
    who = f"{model.name_or_path or type(model).__name__} (architecture {config.model_type})"
    if config._attn_implementation not in ("eager", "sdpa"):
        raise RlverError(
            f"{who}: attention {config._attn_implementation!r} takes no masks of ours; load it with 'sdpa'."
        )
    unknown = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if unknown:
        raise RlverError(f"{who}: layers of kind {', '.join(sorted(unknown))} cannot go back to an earlier turn.")
    training = model.training
    model.eval()
    try:
        with _narrow_window(model):
            gap, size = _largest_gap(model)
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError, NotImplementedError) as error:
        raise RlverError(f"{who}: it cannot be sampled from turn by turn ({error}).") from error
    finally:
        model.train(training)
    if not gap <= (1e-3 if model.dtype == torch.float32 else 0.1) * max(1.0, size):
        raise RlverError(
            f"{who}: sampled turn by turn its logits are off by {gap:.2g}, so it cannot be trained; "
            "decoders like Qwen, Llama, Mistral and Gemma can."
        )


def check_dialogue(chat: ChatFormat, dialogue: Dialogue) -> None:
    """Check that the ids sampled in a dialogue are what its texts and the chat template say.

    Raises:
        RlverError: they are not; names the template and the turn.
    """
    context = chat.opening(dialogue.opening)
    for number, turn in enumerate(dialogue.turns, 1):
        where = f"{name_of(chat.tokenizer)}: with its chat template, turn {number} of a dialogue"
        tokens = turn.tokens
        if tokens is None:
            raise RlverError(f"{where} has no record of its token ids.")
        if tokens.prompt_ids != [*context, *chat.lead]:
            raise RlverError(f"{where} was sampled after other ids than those of the messages before it.")
        if chat.decode(tokens.token_ids) != turn.raw:
            raise RlverError(f"{where} says {turn.raw!r}, but its ids say {chat.decode(tokens.token_ids)!r}.")
        if turn.reaction is not None:
            context += chat.reply(turn.reply) if dialogue.think else chat.closed(tokens.token_ids)
            context += chat.turn(turn.reaction.utterance)


def _largest_gap(model: PreTrainedModel) -> tuple[float, float]:
    """Largest difference of logits, and the largest logit."""
    sampler = Sampler(model)
    fed: list[list[int]] = [[], []]
    gaps, sizes = [], []
    for chunks in _FED:
        logits = sampler.feed(range(2), [len(context) for context in fed], chunks)
        for context, chunk, found in zip(fed, chunks, logits, strict=True):
            context += chunk
            expected = model(input_ids=torch.tensor([context], device=model.device), use_cache=False).logits[0, -1]
            gaps.append(float((found - expected).abs().max()))
            sizes.append(float(expected.abs().max()))
    return max(gaps), max(sizes)


@contextmanager
def _narrow_window(model: PreTrainedModel) -> Iterator[None]:
    """Let layers that see a window see so little that a few tokens show whether our masks are theirs."""
    window = getattr(model.config, "sliding_window", None)
    if window:
        model.config.sliding_window = 3
    try:
        yield
    finally:
        if window:
            model.config.sliding_window = window
