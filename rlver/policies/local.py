"""A local Hugging Face causal language model as a policy, with the exact ids and log-probs of all it sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Language
from rlver.policies.chat import ChatFormat
from rlver.policies.folder import read_policy
from rlver.policies.prompts import prompt_hash, system_prompt
from rlver.policies.sampler import Sampler


@dataclass
class Reply:
    """One sampled reply."""

    start: int
    """Tokens of the trace's `context` that it was sampled after."""
    ids: list[int]
    """Exact sampled ids, with the closing mark if one was sampled."""
    logprobs: list[float]
    """Log-prob of each id under the distribution that it was drawn from."""


@dataclass
class Trace:
    """One dialogue as token ids: the context that grew from turn to turn, and every reply.

    Without thinking the replies are part of the context, ids and all. With thinking the context holds each
    reply without its thoughts, as later turns saw it.
    """

    context: list[int] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


def load_model(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, whole or as an adapter of another, and its tokenizer from a folder, onto the GPU if that pays.

    Raises:
        RlverError: there is no such folder, or no model that can be loaded in it.
    """
    return read_policy(Path(folder))


class LocalPolicy:
    """Samples replies for a whole batch of dialogues in step, keeping the KV cache from turn to turn."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        language: Language,
        *,
        think: bool = False,
        spec: str = "local",
        max_tokens: int = 64,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self.chat = ChatFormat(tokenizer, system_prompt(language, think))
        self.spec = spec
        self.think = think
        self.prompt_hash = prompt_hash(language, think)
        self.max_tokens = max_tokens
        """Most tokens of one reply, thinking included; a longer one is cut."""
        self.temperature = temperature
        self.traces: list[Trace] = []

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """See `Policy.start`."""
        self._dialogues = list(dialogues)
        self._seeds = list(seeds)
        self._sampler = Sampler(self.model, len(dialogues))
        self.traces = [Trace() for _ in dialogues]

    def reply(self, active: Sequence[int]) -> list[str]:
        """See `Policy.reply`."""
        chunks = [self._chunk(index) for index in active]
        logits = self._sampler.feed(active, chunks)
        uniforms = torch.stack([self._draw(index) for index in active]).to(logits.device)
        sampled = self._sampler.sample(active, logits, uniforms, self.chat.stop, self.temperature)
        texts = []
        for index, (ids, logprobs) in zip(active, sampled, strict=True):
            trace = self.traces[index]
            trace.replies.append(Reply(len(trace.context), ids, logprobs))
            texts.append(self.chat.decode(ids))
        return texts

    def release(self) -> None:
        """Free the KV cache, which is as large as a step's dialogues are long; `traces` stay."""
        del self._sampler

    def _chunk(self, index: int) -> list[int]:
        """Ids that the model has not seen yet, up to where the reply to come begins."""
        dialogue, trace = self._dialogues[index], self.traces[index]
        messages = dialogue.messages()
        if not trace.replies:
            chunk = self.chat.opening(messages[0].content)
        else:
            last = trace.replies[-1]
            if self.think:
                # Later turns see the reply without the thinking: go back to before it and say the reply alone.
                self._sampler.rewind(index, len(trace.context))
                chunk = self.chat.text(messages[-2].content)
                fed = 0
            else:
                chunk, fed = list(last.ids), len(last.ids) - 1
            if not chunk or chunk[-1] != self.chat.stop:
                chunk.append(self.chat.stop)
            chunk += self.chat.turn(messages[-1].content)
            trace.context += chunk[:fed]
            chunk = chunk[fed:]
        trace.context += chunk
        return chunk

    def _draw(self, index: int) -> torch.Tensor:
        turn = len(self.traces[index].replies)
        generator = torch.Generator().manual_seed(self._seeds[index] * 1009 + turn)
        return torch.rand(self.max_tokens, generator=generator)
