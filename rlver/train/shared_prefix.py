"""What dialogues of a batch begin with goes through the decoder once for all of them, with its gradients.

The rollouts of a profile share their whole opening, and all dialogues the system prompt. A causal decoder makes the
same keys and values of the same beginning, so those of one row serve all others, and what the others' attention says
about them adds up in the one ("Prefix Grouper", arXiv 2506.05433). The numbers are those of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rlver.inference.decoder import attention_mask, position_limit
from rlver.inference.encoding import common_beginning

_WORTH = 0.05
"""Share of a batch's tokens that must be saved: a second pass costs time of its own, as does a mask."""


@dataclass(frozen=True)
class Prefix:
    """P tokens with which each of B rows begins; G of these beginnings differ."""

    ids: Tensor
    """(G, P)"""
    owners: Tensor
    """(B,) which of them a row begins with."""


def find_prefix(beginnings: Sequence[list[int]], tokens: int, device: torch.device | str = "cpu") -> Prefix | None:
    """The beginnings of the length that saves most, if that is enough to pay.

    Args:
        beginnings: what may be shared of each row.
        tokens: of the whole batch, padding included.
    """
    shortest = min(map(len, beginnings))
    rows = [tuple(beginning[:shortest]) for beginning in beginnings]
    order = sorted(rows)
    depths = [len(common_beginning(two)) for two in pairwise(order)]
    # In order, who shares less than a depth with the one before begins in a new way there.
    saved = {depth: depth * sum(other >= depth for other in depths) for depth in depths}
    depth = max(saved, key=saved.__getitem__, default=0)
    if not depth or saved[depth] < _WORTH * tokens:
        return None
    numbers = {beginning: number for number, beginning in enumerate(dict.fromkeys(row[:depth] for row in rows))}
    owners = [numbers[row[:depth]] for row in rows]
    return Prefix(torch.tensor(list(numbers), device=device), torch.tensor(owners, device=device))


def can_share(model: PreTrainedModel, length: int) -> bool:
    """Whether rows of this length can be computed in two passes, the second on keys and values of the first."""
    if model.training and model.is_gradient_checkpointing:  # layers that are computed again keep none
        return False
    limit = position_limit(model.config)
    return not limit or length <= limit


def rest_states(model: PreTrainedModel, prefix: Prefix, ids: Tensor) -> Tensor:
    """(B, L - P, hidden) last hidden states of rows (B, L) behind their prefix."""
    depth = prefix.ids.shape[1]
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    cache = _Shared(prefix.owners)
    _decode(model, cache, prefix.ids, positions[:, :depth], positions[:, :depth])
    return _decode(model, cache, ids[:, depth:], positions[:, depth:], positions)


def _decode(model: PreTrainedModel, cache: _Shared, ids: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Hidden states of tokens at positions `queries` (1, n) that may see `keys` (1, m): one mask for all rows.

    Right padding is behind all that counts, and nobody sees what is behind.
    """
    mask = attention_mask(model, keys[:, None, :] <= queries[:, :, None], queries, keys)
    output = model.get_decoder()(
        input_ids=ids, position_ids=queries, attention_mask=mask, past_key_values=cache, use_cache=True
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


class _Shared(Cache):
    """Keys and values of the prefixes, (G, heads, P, head size) a layer, which then stand before those of the rows."""

    def __init__(self, owners: Tensor) -> None:
        super().__init__(layers=[])
        self._owners = owners
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: first with the states of the prefixes, then with those of the rows."""
        if layer_idx not in self._kept:
            self._kept[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self._kept.pop(layer_idx)
        return torch.cat((self._of_rows(keys), key_states), 2), torch.cat((self._of_rows(values), value_states), 2)

    def _of_rows(self, states: Tensor) -> Tensor:
        """(B, heads, P, head size) those that each row begins with.

        By a matrix product, for it adds up its gradients in one order everywhere. Indexing does not on several
        threads of a CPU, nor `index_select` on a GPU.
        """
        chosen = torch.nn.functional.one_hot(self._owners, len(states)).to(states.dtype)
        return torch.tensordot(chosen, states, dims=1)

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Unused: positions are given explicitly."""
        return 0
