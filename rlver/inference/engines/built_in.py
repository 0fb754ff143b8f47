"""The built-in engine: continuous batching over one ragged KV cache.

Requests that wait for a reply share one event loop. The engine decodes one token for each of them, lets every task that
has its reply go on, and decodes the next token. So embedded users react between two tokens, and users behind an
endpoint answer while other dialogues generate. The schedule depends on nothing but the order of the requests.

A reply begins with a forward pass over its new tokens, which costs about as much as a decoding step of the whole batch.
So requests wait until their rows, taken together, have idled through as many steps as there are rows. Waiting longer
would cost more than it saves. Requests that end together therefore go on together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlver.inference.cores import Cores
from rlver.inference.engines.base import Sampled, Sampling
from rlver.inference.engines.prefix_reuse import NewConversation, share_prefixes
from rlver.inference.engines.rows import Conversation, Rows
from rlver.inference.sampler import Sampler, choose

_COMPACT_BELOW = 0.75
"""Share of active rows among the computed ones below which the active rows move together."""


@dataclass(eq=False)
class _Request:
    number: int
    """The conversation's number, which orders the replies of a step."""
    conversation: Conversation
    chunk: Sequence[int]
    start: int
    """Length of the conversation before the chunk."""
    uniforms: Tensor
    """(max_tokens,) numbers in [0, 1). The k-th draws the k-th token of the reply."""
    sampling: Sampling
    reply: asyncio.Future[Sampled]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


class BuiltInEngine:
    """Samples from a model in this process and shares its weights. See `Engine` for its methods.

    The cache has as many rows as conversations have been open at once, each as long as the longest of them.
    """

    def __init__(self, model: PreTrainedModel, cores: Cores | None = None) -> None:
        """Sample from a model.

        Args:
            cores: CPU cores for the forward passes; None leaves the number to torch.
        """
        self.steps = 0
        """Number of steps so far. A step decodes one token for every active request."""
        self._sampler = Sampler(model, cores)
        self._rows = Rows(self._sampler)
        self._conversations: dict[int, Conversation] = {}
        self._opened = 0
        self._waiting: list[_Request] = []
        """Requests whose chunks are not encoded yet."""
        self._active: list[_Request] = []
        """Requests whose replies are being decoded."""
        self._idle_steps = 0
        """Sum over the waiting requests of the steps that they have waited."""
        self._scheduled = False
        self._tokens: Tensor
        """(rows, 1) last token of each row, the input of the next step."""
        self._positions: Tensor
        """(rows, 1) position of that token."""
        self._uniforms: Tensor
        """(rows, max_tokens + 1) see `_Request.uniforms`."""
        self._drawn: Tensor
        """(rows, 1) number of tokens that are already drawn."""
        self._increments: Tensor
        """(rows, 1) 1 in rows of active requests, 0 in idle rows."""
        self._prepare_decoding()

    def open(self) -> int:
        """See `Engine.open`."""
        self._opened += 1
        self._conversations[self._opened] = Conversation()
        return self._opened

    async def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Sampled:
        """See `Engine.reply`.

        Raises:
            ValueError: replies at another temperature are being sampled.
        """
        others = self._waiting or self._active
        if others and others[0].sampling.temperature != sampling.temperature:
            raise ValueError("replies that are sampled together must have the same temperature")
        target = self._conversations[conversation]
        uniforms = torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed))
        future: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
        request = _Request(conversation, target, chunk, target.length, uniforms, sampling, future)
        self._waiting.append(request)
        self._schedule()
        try:
            return await future
        except BaseException:
            self._withdraw(request)
            raise

    def rewind(self, conversation: int, length: int) -> None:
        """See `Engine.rewind`."""
        target = self._conversations[conversation]
        target.length, target.prefix = length, target.prefix[:length]

    def end(self, conversation: int) -> None:
        """See `Engine.end`. The cache is freed after the last conversation, unless another begins at once."""
        self._conversations.pop(conversation).ended = True
        if self._conversations:
            return
        try:
            asyncio.get_running_loop().call_soon(self.clear)
        except RuntimeError:  # no event loop is running
            self.clear()

    def clear(self) -> None:
        """Free the cache. Does nothing while a conversation is open."""
        if not self._conversations:
            self._rows.clear()

    async def update_weights(self, model: PreTrainedModel) -> None:
        """See `Engine.update_weights`. The weights are shared, so only the cache of the old ones must go.

        Raises:
            ValueError: a conversation is open, which holds what was computed with the old weights.
        """
        if self._conversations:
            raise ValueError(f"{len(self._conversations)} conversations are open; end them before an update of weights")
        self.clear()

    async def close(self) -> None:
        """See `Engine.close`. There are no connections."""

    def _schedule(self) -> None:
        """Take a step after all tasks that can go on have done so."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Take a step and hand out the replies that it completed, those of older conversations first."""
        self._scheduled = False
        requests = [*self._active, *self._waiting]
        if not requests:
            return
        try:
            self._step()
        except Exception as error:
            for request in requests:
                if not request.reply.done():
                    request.reply.set_exception(error)
            return
        for request in sorted(requests, key=lambda request: request.number):
            if request.done and not request.reply.done():
                request.reply.set_result(Sampled(request.ids, request.logprobs))
        if self._active or self._waiting:
            self._schedule()

    def _withdraw(self, request: _Request) -> None:
        """Forget a request whose task was cancelled or failed."""
        self._waiting = [waiting for waiting in self._waiting if waiting is not request]
        self._active = [active for active in self._active if active is not request]
        request.conversation.length = request.start
        self._prepare_decoding()

    @torch.inference_mode()
    def _step(self) -> None:
        """Decode one token for every active request, after waiting ones have joined if that pays."""
        self.steps += 1
        self._idle_steps += len(self._waiting)
        if self._waiting and (not self._active or self._idle_steps >= len(self._waiting) + len(self._active)):
            self._admit()
        elif len(self._active) <= _COMPACT_BELOW * len(self._tokens):
            self._rows.compact([request.conversation for request in self._active])
            self._prepare_decoding()
        if self._active:
            self._decode()

    def _admit(self) -> None:
        """Encode the chunks of all waiting requests, and draw the first token of each reply."""
        admitted, self._waiting, self._idle_steps = self._waiting, [], 0
        encoded = self._rows.find_filled()
        self._rows.compact([request.conversation for request in (*self._active, *admitted)])
        new = [NewConversation(r.conversation, r.chunk) for r in admitted if not r.conversation.length]
        share_prefixes(self._sampler, new, encoded)
        pending = [request.chunk[request.conversation.length - request.start :] for request in admitted]
        rows, lengths = [r.conversation.row for r in admitted], [r.conversation.length for r in admitted]
        logits = self._sampler.feed(rows, lengths, pending)
        for request in admitted:
            request.conversation.length = request.start + len(request.chunk)
        uniforms = torch.stack([request.uniforms[:1] for request in admitted]).to(logits.device)
        token, logprob = choose(logits, uniforms, admitted[0].sampling.temperature)
        _append(admitted, range(len(admitted)), token, logprob)
        self._active += [request for request in admitted if not request.done]
        self._prepare_decoding()

    def _decode(self) -> None:
        """Decode one token for every active request."""
        visible = 1 + max(request.conversation.length for request in self._active)
        logits = self._sampler.step(self._tokens, self._positions, visible)
        uniforms = self._uniforms.gather(1, self._drawn)
        self._tokens, logprob = choose(logits, uniforms, self._active[0].sampling.temperature)
        self._positions += self._increments
        self._drawn += self._increments
        for request in self._active:
            request.conversation.length += 1
        _append(self._active, [request.conversation.row for request in self._active], self._tokens, logprob)
        active = [request for request in self._active if not request.done]
        if len(active) < len(self._active):
            self._active = active
            self._increments = self._by_row([0] * len(self._tokens), [1] * len(active))

    def _prepare_decoding(self) -> None:
        """Set up the inputs of decoding steps: one value for each row up to the last active one.

        Idle rows among them write after their last token, where nothing reads.
        """
        active = self._active
        count = 1 + max((request.conversation.row for request in active), default=-1)
        self._tokens = self._by_row([0] * count, [request.ids[-1] for request in active])
        self._positions = self._by_row(self._rows.lengths(count), [request.conversation.length for request in active])
        self._drawn = self._by_row([0] * count, [len(request.ids) for request in active])
        self._increments = self._by_row([0] * count, [1] * len(active))
        by_row = {request.conversation.row: request.uniforms for request in active}
        rows = [by_row.get(row, torch.zeros(1)) for row in range(count)]
        # One more column, which is read but not used after the last number of a row.
        uniforms = pad_sequence([*rows, torch.zeros(1)], batch_first=True)[:count]
        self._uniforms = torch.nn.functional.pad(uniforms, (0, 1)).to(self._sampler.model.device)

    def _by_row(self, defaults: list[int], values: Sequence[int]) -> Tensor:
        """(rows, 1) the values of the active requests in their rows, and defaults in idle rows."""
        for request, value in zip(self._active, values, strict=True):
            defaults[request.conversation.row] = value
        return torch.tensor(defaults, dtype=torch.long, device=self._sampler.model.device)[:, None]


def _append(requests: Sequence[_Request], rows: Sequence[int], token: Tensor, logprob: Tensor) -> None:
    """Append to each reply the token that was drawn in its row. From a GPU, everything comes in one transfer."""
    ids, logprobs = torch.cat([token.float(), logprob], 1).T.tolist()
    for request, row in zip(requests, rows, strict=True):
        request.ids.append(int(ids[row]))
        request.logprobs.append(logprobs[row])
        request.done = request.ids[-1] in request.sampling.stop or len(request.ids) == request.sampling.max_tokens
