"""Sampling from a causal language model for many dialogues at once, with the KV cache kept from turn to turn.

Rows of a batch have different lengths ("ragged"), so every row writes its keys and values at its own position of
one preallocated cache, and the attention mask says what each query may see. Nothing is ever encoded twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rlver.core.errors import RlverError
from rlver.policies.decoder import attention_mask, make_logits, position_limit


class Sampled(NamedTuple):
    """What was sampled for one row."""

    ids: list[int]
    """Exact token ids, the stop token included if one was sampled."""
    logprobs: list[float]
    """Log probability of each under the distribution that it was drawn from (after temperature)."""


class RaggedCache(Cache):
    """Keys and values of shape (places, heads, slots, head size) per layer; each row is written where it stands.

    Rows sit at places in an order of our choice: those at work come first, so that a forward pass over them reads
    a plain slice of the cache and copies nothing.
    """

    def __init__(self, layers: int, rows: int, heads: int, size: int, like: Tensor) -> None:
        super().__init__(layers=[])
        self._stores = [[like.new_zeros((rows, heads, 0, size)) for _ in range(layers)] for _ in range(2)]
        self.order = list(range(rows))
        """Row at each place."""
        self.slots = 0
        self.positions: Tensor = torch.empty(0)
        self.visible = 0

    def reserve(self, slots: int) -> None:
        """Make room for so many tokens a row."""
        if slots > self.slots:
            slots = max(slots, 2 * self.slots, 512)
            for store in self._stores:
                for layer, old in enumerate(store):
                    store[layer] = old.new_zeros((*old.shape[:2], slots, old.shape[3]))
                    store[layer][:, :, : self.slots] = old
            self.slots = slots

    def arrange(self, rows: Sequence[int], used: int) -> None:
        """Bring these rows to the first places, in this order; `used` slots of each row are worth keeping."""
        if self.order[: len(rows)] == list(rows):
            return
        chosen = set(rows)
        order = [*rows, *(row for row in self.order if row not in chosen)]
        place = {row: i for i, row in enumerate(self.order)}
        moved = torch.tensor([place[row] for row in order])
        for store in self._stores:
            for tensor in store:
                tensor[:, :, :used] = tensor[moved.to(tensor.device), :, :used]
        self.order = order

    def prepare(self, positions: Tensor, visible: int) -> None:
        """Say where the next forward pass over the first A places writes, (A, n), and how many slots it may see."""
        self.positions, self.visible = positions, visible

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: states are (A, heads, n, head size)."""
        count = len(key_states)
        at = (torch.arange(count, device=key_states.device)[:, None], slice(None), self.positions)
        keys, values = (store[layer_idx] for store in self._stores)
        keys[at] = key_states.transpose(1, 2)
        values[at] = value_states.transpose(1, 2)
        return keys[:count, :, : self.visible], values[:count, :, : self.visible]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Unused: positions are given explicitly."""
        return 0


class Sampler:
    """Feeds tokens to rows of a batch and samples continuations, turn after turn."""

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model = model
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._device = model.device
        like = torch.empty(0, dtype=model.dtype, device=self._device)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._cache = RaggedCache(config.num_hidden_layers, rows, heads, size, like)
        self._limit = position_limit(config)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=self._device)
        """Tokens that each row holds."""

    def rewind(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        self.lengths[row] = length

    @torch.no_grad()
    def feed(self, rows: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Append a chunk of tokens to each row. Returns the logits (A, vocabulary) after the last token of each."""
        sizes = torch.tensor([len(chunk) for chunk in chunks], device=self._device)
        ids = torch.zeros((len(chunks), int(sizes.max())), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            ids[i, : len(chunk)] = torch.as_tensor(chunk)
        hidden = self._forward(rows, ids.to(self._device), sizes)
        return make_logits(self.model, hidden[torch.arange(len(rows)), sizes - 1])

    @torch.no_grad()
    def sample(
        self, rows: Sequence[int], logits: Tensor, uniforms: Tensor, stops: Collection[int], temperature: float
    ) -> list[Sampled]:
        """Continue each row until a token of `stops` or `uniforms.shape[1]` tokens.

        Args:
            logits: (A, vocabulary), as `feed` returned them.
            uniforms: (A, most new tokens) numbers in [0, 1), drawn by the caller: token k of a row is where the
                cumulative distribution passes its k-th number, so that a row's text depends on its seed alone.
            stops: ids of the tokens that end a reply.
            temperature: > 0 divides the logits; 0 takes the likeliest token.
        """
        done = [Sampled([], []) for _ in rows]
        ends = torch.tensor(sorted(stops), device=self._device)
        at_work = list(range(len(rows)))
        going = torch.ones(len(rows), dtype=torch.bool, device=self._device)
        for step in range(uniforms.shape[1]):
            token, logprob = _choose(logits, uniforms[at_work, step], temperature)
            for i, t, p, g in zip(at_work, token.tolist(), logprob.tolist(), going.tolist(), strict=True):
                if g:
                    done[i].ids.append(t)
                    done[i].logprobs.append(p)
            going &= ~torch.isin(token, ends)
            left = int(going.sum())
            if left == 0 or step + 1 == uniforms.shape[1]:
                break
            if left <= 0.75 * len(at_work):
                # Moving the rest together costs a copy of the cache, so it waits until it pays.
                at_work = [i for i, g in zip(at_work, going.tolist(), strict=True) if g]
                token, going = token[going], going[going]
            hidden = self._forward([rows[i] for i in at_work], token[:, None], going.long())
            logits = make_logits(self.model, hidden[:, 0])
        return done

    def _forward(self, rows: Sequence[int], ids: Tensor, sizes: Tensor) -> Tensor:
        """Hidden states (A, n, hidden) of new tokens; `sizes` (A,) says how many of each row's n are real."""
        at = torch.tensor(list(rows), device=self._device)
        n = torch.arange(ids.shape[1], device=self._device)
        start = self.lengths[at]
        visible = int(start.max()) + ids.shape[1]
        if self._limit and visible > self._limit:
            raise RlverError(
                f"{self.model.name_or_path}: a dialogue of {visible} tokens is longer than the {self._limit} that its "
                "position embeddings hold for without being rescaled; take shorter replies or fewer turns."
            )
        self._cache.arrange(rows, int(self.lengths.max()))
        self._cache.reserve(visible + 1)
        position = start[:, None] + n
        # Padding is written to the last slot, which no query ever sees.
        written = torch.where(n < sizes[:, None], position, self._cache.slots - 1)
        slots = torch.arange(visible, device=self._device)
        mask = attention_mask(self.model, slots <= position[:, :, None], position, slots)
        self._cache.prepare(written, visible)
        output = self.model.get_decoder()(
            input_ids=ids, position_ids=position, attention_mask=mask, past_key_values=self._cache, use_cache=True
        )
        self.lengths[at] += sizes
        return output.last_hidden_state


def _choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token for each row of logits (A, vocabulary), and its log-prob: both (A,)."""
    scaled = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = scaled.argmax(-1)
    else:
        cumulative = scaled.exp().cumsum(-1)
        token = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
        token = token.clamp(max=cumulative.shape[1] - 1)
    return token, scaled.gather(1, token[:, None]).squeeze(1)
