"""A local Hugging Face causal language model as a policy, with the exact ids and log-probs of all it sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.dialogue import Dialogue
from rlver.core.errors import CallFailed, RlverError
from rlver.core.profile import Language
from rlver.inference.chat_format import ChatFormat
from rlver.inference.chat_template import name_of
from rlver.inference.cores import Cores
from rlver.inference.engines.base import Engine, Sampling
from rlver.inference.engines.built_in import LocalEngine
from rlver.inference.exactness import check_model
from rlver.policies.base import Replies
from rlver.policies.prompts import prompt_hash, system_prompt


@dataclass
class Reply:
    """One sampled reply."""

    start: int
    """Tokens of the trace's `context` that it was sampled after."""
    ids: list[int]
    """Exact sampled ids, with the closing mark if one was sampled."""
    logprobs: list[float]
    """Log-prob of each id under the distribution that it was drawn from."""
    lead: list[int] = field(default_factory=list)
    """Ids of the chat template between that context and the sampled ones, which no later turn sees."""


@dataclass
class Trace:
    """One dialogue as token ids: the context that grew from turn to turn, and every reply.

    Without thinking the replies are part of the context, ids and all. With thinking the context holds each
    reply without its thoughts, as later turns saw it. A template that opens only the reply to come in some way (a
    `lead`) moves the earlier ones, too.
    """

    context: list[int] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids at which the model's own generation would stop, one or several."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else [int(end) for end in ends]


class LocalPolicy:
    """Speaks for a causal language model, keeping what it said as token ids. See `Policy` for its methods.

    Copies share the engine, so that what they sample at the same time is sampled together.

    Args:
        engine: what samples; by default the built-in one.
        cores: of a CPU, that the built-in one computes with.
    """

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
        engine: Engine | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.model = model
        known = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise RlverError(
                f"{name_of(tokenizer)}: this tokenizer has {len(tokenizer)} entries, and the model knows {known}; "
                "they do not belong together."
            )
        self.chat = ChatFormat(tokenizer, system_prompt(language, think), think, end_tokens(model))
        if engine is None:
            check_model(model)
        self.engine = engine or LocalEngine(model, cores)
        self.spec = spec
        self.think = think
        self.prompt_hash = prompt_hash(language, think)
        self.max_tokens = max_tokens
        """Most tokens of one reply, thinking included; a longer one is cut."""
        self.temperature = temperature
        self.traces: list[Trace] = []
        self._dialogues: list[Dialogue] = []
        self._talks: dict[int, int] = {}
        """The engine's conversation of each dialogue that has one."""

    def __copy__(self) -> LocalPolicy:
        """One that leads dialogues of its own."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__ | {"traces": [], "_dialogues": [], "_talks": {}}
        return twin

    @property
    def waits(self) -> bool:
        """Whether replies come from outside of this process."""
        return self.engine.waits

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """See `Policy.start`."""
        for index in list(self._talks):
            self.end(index)
        self.engine.clear()
        self._dialogues = list(dialogues)
        self._seeds = list(seeds)
        self.traces = [Trace() for _ in dialogues]

    async def reply(self, active: Sequence[int]) -> Replies:
        """See `Policy.reply`. What fails is returned in place of the reply."""
        if len(active) == 1:
            return [await self._reply(active[0])]
        return await asyncio.gather(*(self._reply(index) for index in active))

    def end(self, index: int) -> None:
        """A dialogue is over: free what is kept for it, and for all when none is left."""
        if (talk := self._talks.pop(index, None)) is not None:
            self.engine.end(talk)
        if not self._talks and all(dialogue.stop is not None for dialogue in self._dialogues):
            self.engine.clear()

    async def update_weights(self) -> None:
        """Let the engine sample from what the model's weights are now. See `Engine.update_weights`."""
        await self.engine.update_weights(self.model)

    async def close(self) -> None:
        """Close connections; the policy can be used again."""
        await self.engine.close()

    async def _reply(self, index: int) -> str | CallFailed:
        trace = self.traces[index]
        if index not in self._talks:
            self._talks[index] = self.engine.open()
        known = len(trace.context)
        chunk = self._chunk(index)
        sampling = Sampling(self.temperature, self.max_tokens, frozenset(self.chat.stops))
        seed = self._seeds[index] * 1009 + len(trace.replies)
        try:
            ids, logprobs = await self.engine.reply(self._talks[index], chunk, seed, sampling)
        except CallFailed as error:
            del trace.context[known:]
            return error
        trace.replies.append(Reply(len(trace.context), ids, logprobs, self.chat.lead))
        return self.chat.decode(ids)

    def _chunk(self, index: int) -> list[int]:
        """Ids that the model has not seen yet, up to where the reply to come begins."""
        dialogue, trace = self._dialogues[index], self.traces[index]
        messages = dialogue.messages()
        if not trace.replies:
            chunk = self.chat.opening(messages[0].content)
        else:
            last = trace.replies[-1]
            chunk = self.chat.reply(messages[-2].content) if self.think else self.chat.closed(last.ids)
            fed = len(last.ids) - 1
            if self.think or last.lead:
                # Later turns see the reply alone: go back to before what led to it.
                self.engine.rewind(self._talks[index], len(trace.context))
                fed = 0
            chunk += self.chat.turn(messages[-1].content)
            trace.context += chunk[:fed]
            chunk = chunk[fed:]
        trace.context += chunk
        return chunk + self.chat.lead
