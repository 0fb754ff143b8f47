"""A trained policy as a chat model, which streams answers to any messages of a client."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch

from rlver.inference.chat_format import ChatFormat
from rlver.inference.sampler import Sampler, choose
from rlver.policies.local import LocalPolicy
from rlver.serve.streaming import Delta, DeltaSplitter


class Generator:
    """Answers requests with the model of a local policy, one after the other.

    Args:
        system: system prompt for requests that bring none.
    """

    def __init__(self, policy: LocalPolicy, system: str) -> None:
        self.policy = policy
        self._system = system
        self._lock = threading.Lock()

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a dialogue up to the next reply.

        Args:
            messages: (role, content) pairs; the last one is the user's.

        Raises:
            ValueError: the messages do not alternate between user and assistant, or do not end with the user.
        """
        system = "\n".join(text for role, text in messages if role == "system") or self._system
        turns = [(role, text) for role, text in messages if role != "system"]
        if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise ValueError("messages must alternate between user and assistant, and begin and end with the user")
        chat = self._chat(system)
        ids = chat.opening(turns[0][1])
        for (_, reply), (_, utterance) in zip(turns[1::2], turns[2::2], strict=True):
            ids += [*chat.reply(reply), *chat.turn(utterance)]
        return ids + chat.lead

    def stream(self, ids: list[int], max_tokens: int, temperature: float, seed: int) -> Iterator[Delta]:
        """Sample an answer. A request waits until the one before it is finished.

        Args:
            ids: as `prompt` returns them.
        """
        with self._lock, torch.no_grad():
            sampler = Sampler(self.policy.model)
            logits, length = sampler.feed([0], [0], [ids]), len(ids)
            uniforms = torch.rand((1, max_tokens), generator=torch.Generator().manual_seed(seed)).to(logits.device)
            splitter = DeltaSplitter(self.policy.think)
            sampled: list[int] = []
            stops = self.policy.chat.stops
            for step in range(max_tokens):
                token, _ = choose(logits, uniforms[:, step : step + 1], temperature)
                sampled.append(int(token))
                if sampled[-1] in stops or step + 1 == max_tokens:
                    break
                text = self.policy.chat.decode(sampled)
                if not text.endswith("\ufffd"):  # the bytes of a character may be spread over tokens
                    yield from splitter.split(text, len(sampled))
                logits = sampler.step(token, torch.tensor([[length]], device=token.device), length + 1)
                length += 1
            finish = "stop" if sampled[-1] in stops else "length"
            yield from splitter.split(self.policy.chat.decode(sampled), len(sampled), finish)

    def _chat(self, system: str) -> ChatFormat:
        chat = self.policy.chat
        return chat if system == self._system else ChatFormat(chat.tokenizer, system, self.policy.think, chat.stops)
