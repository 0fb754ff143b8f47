"""A model behind an endpoint as a policy."""

from __future__ import annotations

import re

from rlver.core.dialogue import Dialogue, Reply
from rlver.core.profile import Language
from rlver.core.seeds import derive
from rlver.llm import LLM
from rlver.policies.prompts import prompt_hash, system_prompt

_OWN_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class RemotePolicy:
    """Replies with a model behind an OpenAI-compatible endpoint. See `Policy` for its methods.

    Some servers put a reasoning model's own thinking in front of the answer. It is removed, unless the policy is to
    think in the same format (`think`).
    """

    def __init__(
        self,
        llm: LLM,
        language: Language,
        *,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> None:
        self.llm = llm
        self.spec = llm.endpoint.spec
        self.think = think
        self.prompt_hash = prompt_hash(language, think)
        self.max_tokens = max_tokens
        """Largest number of tokens of one reply; None leaves it to the endpoint."""
        self.temperature = temperature
        """Sampling temperature; None leaves it to the endpoint."""
        self.top_p = top_p
        """Nucleus sampling; None leaves it to the endpoint."""
        self._system = {"role": "system", "content": system_prompt(language, think)}

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`."""
        answer = await self.llm.complete(
            [self._system, *(message.model_dump() for message in dialogue.messages())],
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=derive(seed, len(dialogue.turns)),
        )
        return Reply.parse(answer.text if self.think else _OWN_THINKING.sub("", answer.text), self.think)

    async def close(self) -> None:
        """Close connections. The policy can be used again."""
        await self.llm.close()
