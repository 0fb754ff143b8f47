"""Forward passes of a causal language model over a batch of dialogues, with the KV cache kept between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlver.core.errors import RlverError
from rlver.inference.attention import decoding
from rlver.inference.cores import Cores, equal_parts
from rlver.inference.cuda_graphs import DecodeGraphs, rounded_rows
from rlver.inference.decoder import attention_mask, check_length, learned_positions, make_logits, position_limit
from rlver.inference.kv_cache import CachePass, Places, RaggedCache

_PART = 100_000
"""Numbers, tokens times the hidden size, from which on a pass is worth a core of its own."""


class Sampler:
    """Feeds tokens to rows of a cache. Which rows there are and how long they are is the caller's to know."""

    def __init__(self, model: PreTrainedModel, cores: Cores | None = None) -> None:
        """Sample from a model, with these cores of a CPU."""
        self.model = model
        self._cores = cores
        self._limit = position_limit(model.config)
        self._positions = learned_positions(model)
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
        visible = max(start + len(chunk) for start, chunk in zip(starts, chunks, strict=True))
        self.cache.reserve(max(places) + 1, visible + 1)
        self._counted(visible)  # before passes side by side ask for them

        def fed(part: slice) -> Tensor:
            return self._feed(places[part], starts[part], chunks[part])

        parts = self._parts(chunks)
        if self._cores is None or len(parts) == 1:
            return fed(slice(None))
        return torch.cat(list(self._cores.map(fed, parts)))

    def _parts(self, chunks: Sequence[Sequence[int]]) -> list[slice]:
        """The rows in parts of equal size that are worth a core each: the same ones on any number of cores."""
        if self._cores is None or not self._cores.independent:
            return [slice(None)]
        numbers = len(chunks) * max(map(len, chunks)) * self.model.config.get_text_config().hidden_size
        return equal_parts(len(chunks), numbers // _PART)

    @torch.inference_mode()
    def _feed(self, places: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """The same in one pass."""
        device = self.model.device
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.zeros((len(chunks), int(sizes.max())), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            ids[i, : len(chunk)] = torch.as_tensor(chunk)
        visible = max(start + len(chunk) for start, chunk in zip(starts, chunks, strict=True))
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
        check_length(self.model, visible, self._positions)
        if self._limit and visible > self._limit:
            raise RlverError(
                f"{self.model.name_or_path}: a dialogue of {visible} tokens is longer than the {self._limit} that its "
                "position embeddings hold for without being rescaled; take shorter replies or fewer turns."
            )
        slots = self._counted(visible)[:visible]
        mask = attention_mask(self.model, slots <= positions[:, :, None], positions, slots)
        output = self.model.get_decoder()(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=CachePass(self.cache, places, rows[:, None], written, visible),
            use_cache=True,
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
