"""A trained policy as a chat model: text piece by piece, from whatever messages a client sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch

from rlver.inference.chat_format import ChatFormat
from rlver.inference.sampler import Sampler, choose
from rlver.policies.local import LocalPolicy
from rlver.serve.pieces import Piece, Teller


class Generator:
    """Answers one request after the other with the model of a local policy."""

    def __init__(self, policy: LocalPolicy, system: str) -> None:
        self.policy = policy
        self._system = system
        self._lock = threading.Lock()

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation of (role, content) that ends with the user's words.

        Raises:
            ValueError: the messages do not alternate between user and assistant, or do not end with the user.
        """
        system = "\n".join(text for role, text in messages if role == "system") or self._system
        talk = [(role, text) for role, text in messages if role != "system"]
        if [role for role, _ in talk] != ["user", "assistant"] * (len(talk) // 2) + ["user"]:
            raise ValueError("messages must alternate between user and assistant, and begin and end with the user")
        chat = self._chat(system)
        ids = chat.opening(talk[0][1])
        for (_, reply), (_, said) in zip(talk[1::2], talk[2::2], strict=True):
            ids += [*chat.reply(reply), *chat.turn(said)]
        return ids + chat.lead

    def stream(self, ids: list[int], max_tokens: int, temperature: float, seed: int) -> Iterator[Piece]:
        """Sample an answer. One at a time: others wait."""
        with self._lock, torch.no_grad():
            sampler = Sampler(self.policy.model)
            logits, length = sampler.feed([0], [0], [ids]), len(ids)
            draws = torch.rand((1, max_tokens), generator=torch.Generator().manual_seed(seed)).to(logits.device)
            told = Teller(self.policy.think)
            sampled: list[int] = []
            stops = self.policy.chat.stops
            for step in range(max_tokens):
                token, _ = choose(logits, draws[:, step : step + 1], temperature)
                sampled.append(int(token))
                if sampled[-1] in stops or step + 1 == max_tokens:
                    break
                # A character may be spread over tokens: half of one is not told.
                text = self.policy.chat.decode(sampled)
                if not text.endswith("\ufffd"):
                    yield from told.tell(text, len(sampled))
                logits = sampler.step(token, torch.tensor([[length]], device=token.device), length + 1)
                length += 1
            finish = "stop" if sampled[-1] in stops else "length"
            yield from told.tell(self.policy.chat.decode(sampled), len(sampled), finish)

    def _chat(self, system: str) -> ChatFormat:
        chat = self.policy.chat
        return chat if system == self._system else ChatFormat(chat.tokenizer, system, self.policy.think, chat.stops)
