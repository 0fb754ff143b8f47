"""The KV cache of a batch whose dialogues have different lengths.

The rows of such a batch are "ragged". Every row writes its keys and values at its own position of one preallocated
cache, and the attention mask says what each query may see. No token is encoded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

RowIndex = slice | Tensor
"""Selects rows of the cache. A slice reads them without a copy."""

_GRANULARITY = 256
"""Rows grow by multiples of this many slots, because growing copies the whole cache."""

_ALIGNMENT = 64
"""Memory starts at a multiple of this many bytes, as PyTorch's does. The last bit of a matrix product may depend on
it."""


def rounded(slots: int) -> int:
    """The number of slots that the cache allocates for rows of at least `slots`."""
    return -(-slots // _GRANULARITY) * _GRANULARITY


class RaggedCache:
    """Keys and values of shape (rows, heads, slots, head size) per layer. Each row is written at its own position.

    The last slot of a row is scratch space: padding is written there, and no query sees it.
    """

    def __init__(self, slots: int = 0) -> None:
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows, self.slots = 0, slots
        self.reallocations = 0
        """How often the cache has moved to other memory."""

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for `rows` rows of `slots` slots. The contents stay."""
        if rows <= self.rows and slots <= self.slots:
            return
        if rows > self.rows:  # dialogues may come one by one
            self.rows = max(rows, self.rows * 5 // 4)
        self.slots = max(self.slots, rounded(slots))
        self.reallocations += 1
        for layer, (keys, values) in self._stores.items():
            self._stores[layer] = (self._grown(keys), self._grown(values))

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int], used: int) -> None:
        """Copy the first `used` slots of some rows to others. All are read before any is written, so rows can swap."""
        for stores in self._stores.values():
            for store in stores:
                store[torch.tensor(targets), :, :used] = store[torch.tensor(sources), :, :used]

    def stores(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer. The first call allocates them with heads, size, type and device as given."""
        if layer not in self._stores:
            # Passes may run at the same time: the first to arrive allocates.
            self._stores.setdefault(layer, (self._empty(keys), self._empty(values)))
        return self._stores[layer]

    def _empty(self, like: Tensor) -> Tensor:
        shape = self.rows, like.shape[1], self.slots, like.shape[3]
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        # NumPy, unlike PyTorch, leaves zeroing to the operating system, which maps a page only when it is written to.
        size = prod(shape) * like.element_size()
        buffer = torch.from_numpy(np.zeros(size + _ALIGNMENT, np.uint8))
        start = -buffer.data_ptr() % _ALIGNMENT
        return buffer[start : start + size].view(like.dtype).view(shape)

    def _grown(self, store: Tensor) -> Tensor:
        grown = self._empty(store)
        grown[: store.shape[0], :, : store.shape[2]] = store
        return grown


class CacheView(Cache):
    """The part of a `RaggedCache` that one forward pass reads and writes."""

    def __init__(self, cache: RaggedCache, rows: RowIndex, numbers: Tensor, written: Tensor, visible: int) -> None:
        """View A rows of a cache.

        Args:
            rows: the rows of the pass.
            numbers: (A, 1) the same rows as numbers.
            written: (A, n) slot of each new token.
            visible: number of slots that queries may see.
        """
        super().__init__(layers=[])
        self._cache, self._rows, self._visible = cache, rows, visible
        self._numbers, self._written = numbers, written
        self._indices: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention. The states have the shape (A, heads, n, head size)."""
        keys, values = self._cache.stores(layer_idx, key_states, value_states)
        index = self._flat_index(key_states.shape[1])
        keys.view(-1, keys.shape[3]).index_copy_(0, index, key_states.reshape(-1, keys.shape[3]))
        values.view(-1, values.shape[3]).index_copy_(0, index, value_states.reshape(-1, values.shape[3]))
        return keys[self._rows, :, : self._visible], values[self._rows, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Unused: positions are given explicitly."""
        return 0

    def _flat_index(self, heads: int) -> Tensor:
        """(A * heads * n,) targets of the new states in a store whose first three axes are flattened into one.

        All layers with the same number of heads share it.
        """
        if heads not in self._indices:
            lanes = self._numbers * heads + torch.arange(heads, device=self._numbers.device)
            self._indices[heads] = (lanes[:, :, None] * self._cache.slots + self._written[:, None, :]).flatten()
        return self._indices[heads]
