"""The floor: the least that a step can cost, as bare loops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, Qwen2ForCausalLM

from sides.work import Counts, Setting, make_chat, make_line, make_model


class StraightCache(Cache):
    """Keys and values of rows of equal length, appended to preallocated memory."""

    def __init__(self, model: Qwen2ForCausalLM, rows: int, slots: int) -> None:
        super().__init__(layers=[])
        config = model.config
        shape = (rows, config.num_key_value_heads, slots, config.hidden_size // config.num_attention_heads)
        self.stores = [
            tuple(torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]
        self.used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: states are (rows, heads, n, head size)."""
        keys, values = self.stores[layer_idx]
        end = self.used + key_states.shape[2]
        keys[:, :, self.used : end] = key_states
        values[:, :, self.used : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Tokens that each row holds."""
        return self.used


@dataclass(frozen=True)
class Plan:
    """The tokens of one dialogue, with zeros in place of the replies."""

    ids: list[int]
    chunks: list[list[int]]
    """The tokens that the model reads before each reply."""
    starts: list[int]
    """Where each reply begins."""


class Floor:
    """Bare decoding and a bare update. `seconds` holds the time of each part of the last step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = make_model(setting)
        self.reference = make_model(setting) if setting.kl else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=setting.lr, weight_decay=0.0)
        self.made = self.plan(setting)
        self.ids = torch.tensor([self.made.ids] * setting.dialogues)
        self.at = torch.cat([torch.arange(start, start + setting.tokens) for start in self.made.starts])
        self.seconds = {"decode": 0.0, "reference": 0.0, "update": 0.0}

    @staticmethod
    def plan(setting: Setting) -> Plan:
        """The tokens of a dialogue, in the layout of both trainers."""
        chat, line = make_chat(), make_line(setting.said)
        chunks = [chat.opening(line)] + (setting.turns - 1) * [[chat.stop, *chat.turn(line)]]
        ids: list[int] = []
        starts = []
        for chunk in chunks:
            ids += chunk
            starts.append(len(ids))
            ids += [0] * setting.tokens
        return Plan(ids, chunks, starts)

    def step(self) -> None:
        """Decode, then one update with what was decoded."""
        times = [time.perf_counter()]
        self.decode()
        times.append(time.perf_counter())
        reference = self.refer()
        times.append(time.perf_counter())
        self.update(reference)
        times.append(time.perf_counter())
        self.seconds = dict(zip(self.seconds, (b - a for a, b in pairwise(times)), strict=True))

    @torch.no_grad()
    def decode(self) -> None:
        """Sample all replies in lockstep."""
        self.model.eval()
        rows = len(self.ids)
        straight = StraightCache(self.model, rows, self.ids.shape[1])
        body, head = self.model.get_decoder(), self.model.get_output_embeddings()

        def forward(ids: Tensor) -> Tensor:
            n = ids.shape[1]
            positions = torch.arange(straight.used, straight.used + n)
            mask = None
            if n > 1 and straight.used:
                mask = (torch.arange(straight.used + n) <= positions[:, None])[None, None]
            hidden = body(
                input_ids=ids,
                position_ids=positions[None],
                attention_mask={"full_attention": mask},
                past_key_values=straight,
                use_cache=True,
            ).last_hidden_state
            straight.used += n
            return head(hidden[:, -1])

        for chunk, start in zip(self.made.chunks, self.made.starts, strict=True):
            # What the model has not seen yet: with the last token of the reply before.
            logits = forward(self.ids[:, start - len(chunk) - (start > len(chunk)) : start])
            for k in range(self.setting.tokens):
                cumulative = torch.log_softmax(logits, -1).exp().cumsum(-1)
                token = torch.searchsorted(cumulative, torch.rand(rows, 1) * cumulative[:, -1:], right=True)
                token = token.clamp(max=cumulative.shape[1] - 1)
                self.ids[:, start + k] = token[:, 0]
                if k + 1 < self.setting.tokens:
                    logits = forward(token)

    def logprobs(self, model: Qwen2ForCausalLM, ids: Tensor) -> Tensor:
        """Log-probabilities (rows, sampled tokens) from one plain causal forward pass."""
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, self.at - 1]
        logits = model.get_output_embeddings()(hidden)
        return torch.log_softmax(logits, -1).gather(2, ids[:, self.at, None]).squeeze(2)

    @torch.no_grad()
    def refer(self) -> list[Tensor]:
        """Log-probabilities under the starting policy; empty without a reference model."""
        if self.reference is None:
            return []
        return [self.logprobs(self.reference, ids) for ids in self.ids.split(self.setting.micro)]

    def update(self, reference: Sequence[Tensor]) -> None:
        """Forward, backward, optimizer."""
        self.model.train()
        self.optimizer.zero_grad()
        for i, ids in enumerate(self.ids.split(self.setting.micro)):
            logprobs = self.logprobs(self.model, ids)
            loss = -logprobs.mean()
            if reference:
                gap = reference[i] - logprobs
                loss = loss + self.setting.kl * (gap.exp() - 1 - gap).mean()
            (loss * len(ids) / len(self.ids)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def count(self) -> Counts:
        """Counts of a step."""
        sampled = self.at.numel() * len(self.ids)
        return Counts(sampled, sampled, self.ids.numel())
