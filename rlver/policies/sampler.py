"""Forward passes of a causal language model over dialogues of different lengths, with the KV cache kept between them.

Rows of a batch have different lengths ("ragged"), so every row writes its keys and values at its own position of
one preallocated cache, and the attention mask says what each query may see. Nothing is ever encoded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rlver.core.errors import RlverError
from rlver.policies.attention import decoding
from rlver.policies.decoder import attention_mask, make_logits, position_limit
from rlver.policies.graphs import DecodeGraphs, rounded_rows

Places = slice | Tensor
"""Which rows of the cache: a slice is read without a copy."""


_ROOM = 256
"""Slots by which rows grow: growing copies all of them."""


def rounded(slots: int) -> int:
    """The slots that rows get who need so many."""
    return -(-slots // _ROOM) * _ROOM


class RaggedCache(Cache):
    """Keys and values of shape (places, heads, slots, head size) per layer; each row is written where it stands.

    The last slot of a row takes what is written for nobody, and no query ever sees it.
    """

    def __init__(self, slots: int = 0) -> None:
        super().__init__(layers=[])
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self.places, self.slots = 0, slots
        self.moves = 0
        """How often rows have changed their place in memory."""

    def reserve(self, places: int, slots: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays."""
        if places <= self.places and slots <= self.slots:
            return
        if places > self.places:  # a little more than asked for: dialogues may come one by one
            self.places = max(places, self.places * 5 // 4)
        self.slots = max(self.slots, rounded(slots))
        self.moves += 1
        for layer, stores in self._stores.items():
            self._stores[layer] = (self._grown(stores[0]), self._grown(stores[1]))

    def move(self, sources: Sequence[int], targets: Sequence[int], used: int) -> None:
        """Copy the first `used` slots of rows to other places, all at once, so that rows can change places."""
        for stores in self._stores.values():
            for store in stores:
                store[torch.tensor(targets), :, :used] = store[torch.tensor(sources), :, :used]

    def prepare(self, places: Places, rows: Tensor, written: Tensor, visible: int) -> None:
        """Say where the next forward pass reads and writes.

        Args:
            places: the A rows that it is over.
            rows: (A, 1) the same as numbers.
            written: (A, n) slot of each new token.
            visible: how many slots queries may see.
        """
        self._places, self._visible = places, visible
        self._rows, self._written = rows, written
        self._at: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: states are (A, heads, n, head size)."""
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._empty(key_states), self._empty(value_states))
        keys, values = self._stores[layer_idx]
        at = self._index(key_states.shape[1])
        keys.view(-1, keys.shape[3]).index_copy_(0, at, key_states.reshape(-1, keys.shape[3]))
        values.view(-1, values.shape[3]).index_copy_(0, at, value_states.reshape(-1, values.shape[3]))
        return keys[self._places, :, : self._visible], values[self._places, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Unused: positions are given explicitly."""
        return 0

    def _index(self, heads: int) -> Tensor:
        """(A * heads * n,) where the new states go in a store of which all but the last axis is one: for all layers."""
        if heads not in self._at:
            lanes = self._rows * heads + torch.arange(heads, device=self._rows.device)
            self._at[heads] = (lanes[:, :, None] * self.slots + self._written[:, None, :]).flatten()
        return self._at[heads]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros((self.places, like.shape[1], self.slots, like.shape[3]))

    def _grown(self, old: Tensor) -> Tensor:
        new = self._empty(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


class Sampler:
    """Feeds tokens to rows of a cache. Which rows there are and how long they are is the caller's to know."""

    def __init__(self, model: PreTrainedModel, cores: int = 1) -> None:
        """Sample from a model; `cores` is most of a CPU that reads the cache at once."""
        self.model = model
        self._cores = cores
        self._limit = position_limit(model.config)
        self._numbers = torch.arange(0, device=model.device)
        self.cache = RaggedCache()
        self.graphs = DecodeGraphs(self._one) if model.device.type == "cuda" else None
        """What decodes faster on a GPU."""
        self._moves = 0

    def clear(self) -> None:
        """Free the cache. The next dialogues will be about as long as the last, so its rows begin with that length."""
        self.cache = RaggedCache(self.cache.slots)
        if self.graphs:
            self.graphs.forget()

    @torch.inference_mode()
    def feed(self, places: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Write a chunk of tokens to each row, from the given length on; what stood there is forgotten.

        Returns:
            (A, vocabulary) logits after the last token of each chunk.
        """
        device = self.model.device
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.zeros((len(chunks), int(sizes.max())), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            ids[i, : len(chunk)] = torch.as_tensor(chunk)
        visible = max(start + len(chunk) for start, chunk in zip(starts, chunks, strict=True))
        self.cache.reserve(max(places) + 1, visible + 1)
        offsets = torch.arange(ids.shape[1])
        positions = torch.tensor(list(starts))[:, None] + offsets
        written = torch.where(offsets < sizes[:, None], positions, self.cache.slots - 1)
        rows = torch.tensor(list(places), device=device)
        first, count = places[0], len(places)
        read = slice(first, first + count) if list(places) == list(range(first, first + count)) else rows
        hidden = self._forward(read, rows, ids.to(device), positions.to(device), written.to(device), visible)
        return make_logits(self.model, hidden[torch.arange(count, device=device), sizes.to(device) - 1])

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, visible: int) -> Tensor:
        """Feed one token, (A, 1), at its position, (A, 1), to each of the first A rows.

        Args:
            visible: slots that queries may see. Positions beyond are those of rows that nobody needs now.

        Returns:
            (A, vocabulary) logits.
        """
        count, cache = len(tokens), self.cache
        if self.graphs is None:
            cache.reserve(count, visible + 1)
            return make_logits(self.model, self._one(tokens, positions, visible))
        cache.reserve(rounded_rows(count), visible + 1)
        if self._moves != cache.moves:
            self._moves = cache.moves
            self._counted(max(cache.places, cache.slots))  # which recordings read too
            self.graphs.forget()
        return make_logits(self.model, self.graphs.step(tokens, positions, visible, cache.slots))

    def _one(self, tokens: Tensor, positions: Tensor, visible: int) -> Tensor:
        """Hidden states (A, hidden) of one token of each of the first A rows."""
        rows = self._counted(len(tokens))[: len(tokens)]
        with decoding(self.model, self._cores):
            return self._forward(slice(0, len(tokens)), rows, tokens, positions, positions, visible)[:, 0]

    def _forward(
        self, places: Places, rows: Tensor, ids: Tensor, positions: Tensor, written: Tensor, visible: int
    ) -> Tensor:
        """Hidden states (A, n, hidden) of new tokens (A, n)."""
        if self._limit and visible > self._limit:
            raise RlverError(
                f"{self.model.name_or_path}: a dialogue of {visible} tokens is longer than the {self._limit} that its "
                "position embeddings hold for without being rescaled; take shorter replies or fewer turns."
            )
        slots = self._counted(visible)[:visible]
        mask = attention_mask(self.model, slots <= positions[:, :, None], positions, slots)
        self.cache.prepare(places, rows[:, None], written, visible)
        output = self.model.get_decoder()(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _counted(self, count: int) -> Tensor:
        """The numbers from 0 on, at least so many."""
        if len(self._numbers) < count or self._numbers.device != self.model.device:
            self._numbers = torch.arange(2 * count, device=self.model.device)
        return self._numbers


def choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token for each row of logits, and its log-prob under the distribution that it was drawn from.

    Args:
        logits: (A, vocabulary).
        uniforms: (A, 1) numbers in [0, 1): the token is where the cumulative distribution passes its number.
        temperature: > 0 divides the logits; 0 takes the likeliest token.

    Returns:
        both (A, 1).
    """
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if temperature == 0:
        token = probabilities.argmax(-1, keepdim=True)
    else:
        cumulative = probabilities.cumsum(-1)
        token = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        token = token.clamp(max=cumulative.shape[1] - 1)
    return token, probabilities.gather(1, token).log()
