"""The KV cache of dialogues of different lengths.

Rows of a batch have different lengths ("ragged"), so every row writes its keys and values at its own position of
one preallocated cache, and the attention mask says what each query may see. Nothing is ever encoded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

Places = slice | Tensor
"""Which rows of the cache: a slice is read without a copy."""


_ROOM = 256
"""Slots by which rows grow: growing copies all of them."""

_BOUNDARY = 64
"""Bytes at a multiple of which memory begins, as PyTorch's does: the last bit of a matrix product may depend on it."""


def rounded(slots: int) -> int:
    """The slots that rows get who need so many."""
    return -(-slots // _ROOM) * _ROOM


class RaggedCache:
    """Keys and values of shape (places, heads, slots, head size) per layer; each row is written where it stands.

    The last slot of a row takes what is written for nobody, and no query ever sees it.
    """

    def __init__(self, slots: int = 0) -> None:
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self.places, self.slots = 0, slots
        self.moves = 0
        """How often rows have changed their place in memory."""

    def reserve(self, places: int, slots: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays."""
        if places <= self.places and slots <= self.slots:
            return
        if places > self.places:  # dialogues may come one by one
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

    def stores(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, which are like these."""
        if layer not in self._stores:
            # Of passes side by side, the first to come makes them.
            self._stores.setdefault(layer, (self._empty(keys), self._empty(values)))
        return self._stores[layer]

    def _empty(self, like: Tensor) -> Tensor:
        shape = self.places, like.shape[1], self.slots, like.shape[3]
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        # Unlike PyTorch, NumPy leaves zeros to the system, which gives a page of them when it is first written to.
        size = prod(shape) * like.element_size()
        room = torch.from_numpy(np.zeros(size + _BOUNDARY, np.uint8))
        start = -room.data_ptr() % _BOUNDARY
        return room[start : start + size].view(like.dtype).view(shape)

    def _grown(self, old: Tensor) -> Tensor:
        new = self._empty(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


class CachePass(Cache):
    """What one forward pass reads and writes of a cache."""

    def __init__(self, cache: RaggedCache, places: Places, rows: Tensor, written: Tensor, visible: int) -> None:
        """Read and write rows.

        Args:
            places: the A rows that the pass is over.
            rows: (A, 1) the same as numbers.
            written: (A, n) slot of each new token.
            visible: how many slots queries may see.
        """
        super().__init__(layers=[])
        self._cache, self._places, self._visible = cache, places, visible
        self._rows, self._written = rows, written
        self._at: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: states are (A, heads, n, head size)."""
        keys, values = self._cache.stores(layer_idx, key_states, value_states)
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
            self._at[heads] = (lanes[:, :, None] * self._cache.slots + self._written[:, None, :]).flatten()
        return self._at[heads]
