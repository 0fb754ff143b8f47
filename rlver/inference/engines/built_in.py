"""The built-in engine: continuous batching over one ragged KV cache.

Requests that wait for a reply share one event loop. The engine decodes one token for all of them, lets every task that
has its reply go on, and decodes the next token. So embedded users react between two tokens, and users behind an
endpoint answer while others generate. The schedule depends on nothing but the order of the requests.

A reply begins with a forward pass over the new tokens, which costs about as much as a decoding step of the whole batch.
So requests wait until their rows, taken together, have idled through as many steps as there are rows. From then on
waiting would cost more than it saves. Requests that end together therefore go on together.
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
from rlver.inference.encoding import common_beginning
from rlver.inference.engines.base import Sampled, Sampling
from rlver.inference.sampler import Sampler, choose

_SHARED = 16
"""Tokens that conversations must have in common at their beginning for it to pay to encode them once."""
_SPARSE = 0.75
"""Share of rows at work among those that are computed below which they move together."""
_NOWHERE = -1


@dataclass(eq=False)
class _Talk:
    """A conversation, or an empty seat if it has ended."""

    place: int = _NOWHERE
    length: int = 0
    head: Sequence[int] = ()
    """What it began with, for others that begin with the same."""
    ended: bool = False


@dataclass(eq=False)
class _Request:
    talk: _Talk
    chunk: Sequence[int]
    start: int
    """Length of the conversation before the chunk."""
    uniforms: Tensor
    """(max_tokens,) token k of the reply is drawn with the k-th number."""
    sampling: Sampling
    reply: asyncio.Future[Sampled]
    conversation: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


class LocalEngine:
    """Samples from a model of this process, whose weights it shares. See `Engine` for its methods.

    The cache has as many rows as conversations have been open at once, as long as the longest of them.
    """

    def __init__(self, model: PreTrainedModel, cores: Cores | None = None) -> None:
        """Sample from a model, with these cores of a CPU."""
        self.steps = 0
        """Steps so far: rounds in which everybody at work got one token."""
        self._sampler = Sampler(model, cores)
        self._talks: dict[int, _Talk] = {}
        self._opened = 0
        self._seats: list[_Talk] = []
        """Who is at each place of the cache; who has ended stays there until somebody needs the place."""
        self._waiting: list[_Request] = []
        self._working: list[_Request] = []
        self._idled = 0
        self._scheduled = False
        self._tokens: Tensor
        self._positions: Tensor
        self._drawn: Tensor
        self._going: Tensor
        self._seat()

    def open(self) -> int:
        """See `Engine.open`."""
        self._opened += 1
        self._talks[self._opened] = _Talk()
        return self._opened

    async def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Sampled:
        """See `Engine.reply`.

        Raises:
            ValueError: replies at another temperature are under way.
        """
        others = self._waiting or self._working
        if others and others[0].sampling.temperature != sampling.temperature:
            raise ValueError("replies that are sampled together must have the same temperature")
        talk = self._talks[conversation]
        uniforms = torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed))
        future: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
        request = _Request(talk, chunk, talk.length, uniforms, sampling, future, conversation)
        self._waiting.append(request)
        self._schedule()
        try:
            return await future
        except BaseException:
            self._withdraw(request)
            raise

    def rewind(self, conversation: int, length: int) -> None:
        """See `Engine.rewind`."""
        talk = self._talks[conversation]
        talk.length, talk.head = length, talk.head[:length]

    def end(self, conversation: int) -> None:
        """See `Engine.end`. When no conversation is left, the cache is freed, unless another one begins at once."""
        self._talks.pop(conversation).ended = True
        if self._talks:
            return
        try:
            asyncio.get_running_loop().call_soon(self.clear)
        except RuntimeError:  # no event loop is running
            self.clear()

    def clear(self) -> None:
        """Free the cache. Does nothing while a conversation is open."""
        if not self._talks:
            self._seats = []
            self._sampler.clear()

    async def update_weights(self, model: PreTrainedModel) -> None:
        """See `Engine.update_weights`. The weights are shared: only what was computed from the old ones must go."""
        self.clear()

    async def close(self) -> None:
        """There are no connections."""

    def _schedule(self) -> None:
        """Take a step as soon as all tasks that can go on have done so."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Take a step and hand out the replies that it completed, those of older conversations first."""
        self._scheduled = False
        requests = [*self._working, *self._waiting]
        if not requests:
            return
        try:
            self._step()
        except Exception as error:
            for request in requests:
                if not request.reply.done():
                    request.reply.set_exception(error)
            return
        for request in sorted(requests, key=lambda request: request.conversation):
            if request.done and not request.reply.done():
                request.reply.set_result(Sampled(request.ids, request.logprobs))
        if self._working or self._waiting:
            self._schedule()

    def _withdraw(self, request: _Request) -> None:
        """Forget a request whose task was cancelled or failed."""
        self._waiting = [other for other in self._waiting if other is not request]
        self._working = [other for other in self._working if other is not request]
        request.talk.length = request.start
        self._seat()

    @torch.inference_mode()
    def _step(self) -> None:
        """One more token for everybody at work, after others have joined them if it pays."""
        self.steps += 1
        self._idled += len(self._waiting)
        if self._waiting and (not self._working or self._idled >= len(self._waiting) + len(self._working)):
            self._admit()
        elif len(self._working) <= _SPARSE * len(self._tokens):
            self._arrange([request.talk for request in self._working])
            self._seat()
        if self._working:
            self._decode()

    def _admit(self) -> None:
        """Encode what waits, and draw the first token of each reply."""
        joining, self._waiting, self._idled = self._waiting, [], 0
        donor = min((talk for talk in self._seats if talk.length), key=lambda talk: talk.ended, default=None)
        self._arrange([request.talk for request in (*self._working, *joining)])
        fresh = [request for request in joining if not request.talk.length]
        self._share(fresh, donor)
        self._share_whole(fresh)
        rests = [request.chunk[request.talk.length - request.start :] for request in joining]
        places, lengths = [r.talk.place for r in joining], [r.talk.length for r in joining]
        logits = self._sampler.feed(places, lengths, rests)
        for request in joining:
            request.talk.length = request.start + len(request.chunk)
        uniforms = torch.stack([request.uniforms[:1] for request in joining]).to(logits.device)
        token, logprob = choose(logits, uniforms, joining[0].sampling.temperature)
        _take(joining, range(len(joining)), token, logprob)
        self._working += [request for request in joining if not request.done]
        self._seat()

    def _decode(self) -> None:
        """One token for everybody at work."""
        visible = 1 + max(request.talk.length for request in self._working)
        logits = self._sampler.step(self._tokens, self._positions, visible)
        uniforms = self._uniforms.gather(1, self._drawn)
        self._tokens, logprob = choose(logits, uniforms, self._working[0].sampling.temperature)
        self._positions += self._going
        self._drawn += self._going
        for request in self._working:
            request.talk.length += 1
        _take(self._working, [request.talk.place for request in self._working], self._tokens, logprob)
        working = [request for request in self._working if not request.done]
        if len(working) < len(self._working):
            self._working = working
            self._going = self._by_place([0] * len(self._tokens), [1] * len(working))

    def _share(self, fresh: list[_Request], donor: _Talk | None) -> None:
        """Give fresh conversations the beginning that they share with one that is encoded, or with each other."""
        if (donor is None or not donor.length) and len(fresh) > 1:
            common = common_beginning([request.chunk[:-1] for request in fresh])
            if len(common) >= _SHARED:
                donor, fresh = fresh[0].talk, fresh[1:]
                donor.head, donor.length = common, len(common)
                self._sampler.feed([donor.place], [0], [common])
        heirs = []
        for request in fresh:
            common = common_beginning([request.chunk[:-1], donor.head[: donor.length]]) if donor else ()
            if len(common) >= _SHARED:
                request.talk.length = len(common)
                heirs.append(request.talk)
            request.talk.head = request.chunk
        if donor and heirs:
            used = max(heir.length for heir in heirs)
            self._sampler.cache.move([donor.place] * len(heirs), [heir.place for heir in heirs], used)

    def _share_whole(self, fresh: list[_Request]) -> None:
        """Encode once what several fresh conversations begin with, but for the last token: each wants its logits."""
        alike: dict[tuple[int, ...], list[_Talk]] = {}
        for request in fresh:
            alike.setdefault(tuple(request.chunk[:-1]), []).append(request.talk)
        rests = [chunk[talks[0].length :] for chunk, talks in alike.items()]
        if not any(len(r) >= _SHARED and len(talks) > 1 for r, talks in zip(rests, alike.values(), strict=True)):
            return
        # Who is alone comes along: whatever is left for all of them is one token.
        firsts = [(talks[0], rest) for talks, rest in zip(alike.values(), rests, strict=True) if rest]
        self._sampler.feed([t.place for t, _ in firsts], [t.length for t, _ in firsts], [rest for _, rest in firsts])
        for chunk, talks in alike.items():
            for talk in talks:
                talk.length = len(chunk)
        heirs = [(talks[0].place, talk.place) for talks in alike.values() for talk in talks[1:]]
        self._sampler.cache.move([p for p, _ in heirs], [p for _, p in heirs], max(map(len, alike)))

    def _arrange(self, needed: Sequence[_Talk]) -> None:
        """Bring these to the first places. Who is in the way makes way, and nobody moves without need."""
        count, seats = len(needed), self._seats
        seats += [_Talk(ended=True) for _ in range(count - len(seats))]
        taken = {talk.place for talk in needed}
        moves: dict[int, int] = {}
        used = 0
        free = (place for place in range(count) if place not in taken)
        for talk in needed:
            if 0 <= talk.place < count:
                continue
            place, left = next(free), talk.place
            other = seats[place]
            if left == _NOWHERE and not other.ended:
                left = next((p for p in range(count, len(seats)) if seats[p].ended), len(seats))
                seats += [_Talk(ended=True)] * (left == len(seats))
            if talk.place != _NOWHERE:
                moves[place], used = talk.place, max(used, talk.length)
                seats[left] = _Talk(ended=True)
                # What an ended one left is overwritten.
                other.length *= not other.ended
            if not other.ended:
                moves[left], used = place, max(used, other.length)
                seats[left].length = 0
                seats[left], other.place = other, left
            seats[place], talk.place = talk, place
        self._sampler.cache.reserve(len(seats), used + 1)
        if moves:
            self._sampler.cache.move(list(moves.values()), list(moves), used)

    def _seat(self) -> None:
        """What a step needs of everybody at work, by place. Whoever rests among them writes behind what counts."""
        working = self._working
        count = 1 + max((request.talk.place for request in working), default=-1)
        self._tokens = self._by_place([0] * count, [request.ids[-1] for request in working])
        self._positions = self._by_place([t.length for t in self._seats[:count]], [r.talk.length for r in working])
        self._drawn = self._by_place([0] * count, [len(request.ids) for request in working])
        self._going = self._by_place([0] * count, [1] * len(working))
        drawn = {request.talk.place: request.uniforms for request in working}
        rows = [drawn.get(place, torch.zeros(1)) for place in range(count)]
        # One column more, for who has just drawn the last number.
        uniforms = pad_sequence([*rows, torch.zeros(1)], batch_first=True)[:count]
        self._uniforms = torch.nn.functional.pad(uniforms, (0, 1)).to(self._sampler.model.device)

    def _by_place(self, resting: list[int], working: Sequence[int]) -> Tensor:
        """(places, 1) numbers of those at work, and of those who rest among them."""
        for request, number in zip(self._working, working, strict=True):
            resting[request.talk.place] = number
        return torch.tensor(resting, dtype=torch.long, device=self._sampler.model.device)[:, None]


def _take(requests: Sequence[_Request], rows: Sequence[int], token: Tensor, logprob: Tensor) -> None:
    """Give each request what was drawn in its row; from a GPU it all comes in one transfer."""
    ids, logprobs = torch.cat([token.float(), logprob], 1).T.tolist()
    for request, row in zip(requests, rows, strict=True):
        request.ids.append(int(ids[row]))
        request.logprobs.append(logprobs[row])
        request.done = request.ids[-1] in request.sampling.stop or len(request.ids) == request.sampling.max_tokens
