"""Forward passes of a causal language model over a batch of dialogues, with a KV cache that stays between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlver.core.errors import RlverError
from rlver.inference.attention import decoding, without_cudnn
from rlver.inference.compatibility import cache_argument
from rlver.inference.cores import Cores, equal_parts
from rlver.inference.cuda_graphs import DecodeGraphs, rounded_rows
from rlver.inference.decoder import attention_mask, check_length, learned_positions, make_logits, position_limit
from rlver.inference.kv_cache import CacheView, RaggedCache, RowIndex

_PART = 100_000
"""Size of a forward pass, as tokens times hidden size, that is worth a core of its own."""


class Sampler:
    """Feeds tokens to rows of a KV cache. The caller keeps track of the rows and their lengths."""

    def __init__(self, model: PreTrainedModel, cores: Cores | None = None) -> None:
        """Sample from a model.

        Args:
            cores: CPU cores for the forward passes; None leaves the number to torch.
        """
        self.model = model
        self._cores = cores
        self._position_limit = position_limit(model.config)
        self._learned_positions = learned_positions(model)
        self._numbers = torch.arange(0, device=model.device)
        self.cache = RaggedCache()
        self.graphs = DecodeGraphs(self._decode) if model.device.type == "cuda" else None
        """Recorded decoding steps; None on a CPU."""
        self._recorded_at = 0
        """The cache's number of reallocations when `graphs` was last cleared."""

    def clear(self) -> None:
        """Free the cache. The new one starts with rows of the same length: the next dialogues will be about as long."""
        self.cache = RaggedCache(self.cache.slots)
        if self.graphs:
            self.graphs.clear()

    @torch.inference_mode()
    def feed(self, rows: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Write a chunk of tokens to each row and compute what comes next.

        Args:
            rows: A rows of the cache.
            starts: length of each row before its chunk. Tokens from there on are overwritten.
            chunks: token ids, at least one for each row.

        Returns:
            (A, vocabulary) logits after the last token of each chunk.

        Raises:
            RlverError: a row becomes longer than the model's positions reach.
        """
        visible = max(start + len(chunk) for start, chunk in zip(starts, chunks, strict=True))
        self.cache.reserve(max(rows) + 1, visible + 1)
        self._arange(visible)  # before passes that run at the same time ask for it

        def feed_part(part: slice) -> Tensor:
            return self._feed(rows[part], starts[part], chunks[part])

        parts = self._split(chunks)
        if self._cores is None or len(parts) == 1:
            return feed_part(slice(None))
        return torch.cat(list(self._cores.map(feed_part, parts)))

    def _split(self, chunks: Sequence[Sequence[int]]) -> list[slice]:
        """Equal parts of the rows, each worth a core of its own. They do not depend on the number of cores."""
        if self._cores is None or not self._cores.independent:
            return [slice(None)]
        work = len(chunks) * max(map(len, chunks)) * self.model.config.get_text_config().hidden_size
        return equal_parts(len(chunks), work // _PART)

    @torch.inference_mode()
    def _feed(self, rows: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """`feed` as one forward pass, with chunks padded on the right."""
        device = self.model.device
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.zeros((len(chunks), int(sizes.max())), dtype=torch.long)
        for i, chunk in enumerate(chunks):
            ids[i, : len(chunk)] = torch.as_tensor(chunk)
        visible = max(start + len(chunk) for start, chunk in zip(starts, chunks, strict=True))
        offsets = torch.arange(ids.shape[1])
        positions = torch.tensor(list(starts))[:, None] + offsets
        written = torch.where(offsets < sizes[:, None], positions, self.cache.slots - 1)
        numbers = torch.tensor(list(rows), device=device)
        first, count = rows[0], len(rows)
        adjacent = list(rows) == list(range(first, first + count))
        index = slice(first, first + count) if adjacent else numbers
        hidden = self._forward(index, numbers, ids.to(device), positions.to(device), written.to(device), visible)
        return make_logits(self.model, hidden[torch.arange(count, device=device), sizes.to(device) - 1])

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, visible: int) -> Tensor:
        """Feed one token to each of the first A rows.

        Args:
            tokens: (A, 1) token ids.
            positions: (A, 1) position of each token. Idle rows may lie beyond `visible`; their logits mean nothing.
            visible: number of slots that queries may see.

        Returns:
            (A, vocabulary) logits.

        Raises:
            RlverError: a row becomes longer than the model's positions reach.
        """
        count, cache = len(tokens), self.cache
        if self.graphs is None:
            cache.reserve(count, visible + 1)
            return make_logits(self.model, self._decode(tokens, positions, visible))
        cache.reserve(rounded_rows(count), visible + 1)
        if self._recorded_at != cache.reallocations:
            self._recorded_at = cache.reallocations
            self._arange(max(cache.rows, cache.slots))  # recordings read it, so it must not move either
            self.graphs.clear()
        return make_logits(self.model, self.graphs.step(tokens, positions, visible, cache.slots))

    def _decode(self, tokens: Tensor, positions: Tensor, visible: int) -> Tensor:
        """Hidden states (A, hidden) of one token of each of the first A rows."""
        count = len(tokens)
        numbers = self._arange(count)[:count]
        with decoding(self.model, self._cores):
            return self._forward(slice(0, count), numbers, tokens, positions, positions, visible)[:, 0]

    def _forward(
        self, rows: RowIndex, numbers: Tensor, ids: Tensor, positions: Tensor, written: Tensor, visible: int
    ) -> Tensor:
        """Hidden states (A, n, hidden) of new tokens (A, n). See `CacheView` for the arguments."""
        check_length(self.model, visible, self._learned_positions)
        if self._position_limit and visible > self._position_limit:
            raise RlverError(
                f"{self.model.name_or_path}: a dialogue of {visible} tokens is longer than the {self._position_limit} "
                "for which its position embeddings need no rescaling; use shorter replies or fewer turns."
            )
        slots = self._arange(visible)[:visible]
        mask = attention_mask(self.model, slots <= positions[:, :, None], positions, slots)
        decoder = self.model.get_decoder()
        with without_cudnn(self.model.device):
            output = decoder(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
                **cache_argument(decoder, CacheView(self.cache, rows, numbers[:, None], written, visible)),
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _arange(self, count: int) -> Tensor:
        """The numbers 0, 1, 2, ..., at least `count` of them, on the model's device."""
        if len(self._numbers) < count or self._numbers.device != self.model.device:
            self._numbers = torch.arange(2 * count, device=self.model.device)
        return self._numbers


def choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of logits.

    Args:
        logits: (A, vocabulary).
        uniforms: (A, 1) numbers in [0, 1). A row takes the token at which its cumulative distribution exceeds the
            number.
        temperature: > 0 divides the logits; 0 takes the most likely token.

    Returns:
        The tokens (A, 1), and the log-probability (A, 1) of each under the distribution that it was drawn from.
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
