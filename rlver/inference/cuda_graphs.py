"""Decoding steps as CUDA graphs: a step launches hundreds of small kernels, and a GPU is done with them sooner than
Python can ask for them. A recorded step is launched at once.

A recording holds for one number of rows and of visible slots, so both are rounded up. The rows that nobody needs write
to the last slot, which no query sees.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, int], Tensor]
"""From one token, (A, 1), at its position, (A, 1), of each of the first A rows, with so many slots visible, to its
hidden states (A, hidden)."""
Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]

_ROWS = 8
_SLOTS = 256
_WORTH = 3
"""Steps of the same size from which on recording pays: it costs about three itself."""


def rounded_rows(count: int) -> int:
    """The rows that a step over so many is recorded for."""
    return 1 << (count - 1).bit_length() if count < _ROWS else -(-count // _ROWS) * _ROWS


@dataclass
class _Recorded:
    tokens: Tensor
    positions: Tensor
    replay: Replay


class DecodeGraphs:
    """Does decoding steps, those of a size that comes again from a recording.

    What is recorded reads weights and cache where they lie: `forget` when one of them has moved.
    """

    def __init__(self, forward: Forward, recorder: Callable[[], Record] | None = None) -> None:
        """Record steps of `forward`, by default as CUDA graphs."""
        self._forward = forward
        self._recorder = recorder or CudaRecorder
        self._possible = True
        self.forget()

    def forget(self) -> None:
        """Drop all recordings."""
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._asked: Counter[tuple[int, int]] = Counter()
        self._record = self._recorder()

    def step(self, tokens: Tensor, positions: Tensor, visible: int, slots: int) -> Tensor:
        """Hidden states (A, hidden) of `forward`, valid until the next step; the cache has room for `rounded_rows`.

        Args:
            slots: of each row of the cache; the last one is written for nobody.
        """
        count = len(tokens)
        size = rounded_rows(count), min(-(-visible // _SLOTS) * _SLOTS, slots)
        self._asked[size] += 1
        if size not in self._recorded and (self._asked[size] < _WORTH or not self._start(size, tokens, slots)):
            return self._forward(tokens, positions, visible)
        recorded = self._recorded[size]
        recorded.tokens[:count] = tokens
        recorded.positions[:count] = positions
        recorded.positions[count:] = slots - 1
        return recorded.replay()[:count]

    def _start(self, size: tuple[int, int], like: Tensor, slots: int) -> bool:
        """Record a step of this size. Returns whether that is possible; a model that cannot be recorded never is."""
        if not self._possible:
            return False
        rows, visible = size
        tokens, positions = like.new_zeros(rows, 1), like.new_full((rows, 1), slots - 1)
        try:
            replay = self._record(lambda: self._forward(tokens, positions, visible))
        except RuntimeError as error:
            self._possible = False
            reason = str(error).splitlines()[0]
            warnings.warn(f"this model samples without CUDA graphs, which is slower ({reason})", stacklevel=2)
            return False
        self._recorded[size] = _Recorded(tokens, positions, replay)
        return True


class CudaRecorder:
    """Records what functions do on the GPU; all its recordings share the memory of what does not leave them."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, run: Replay) -> Replay:
        """Returns what does the same again with a single launch, over the same tensors.

        Raises:
            RuntimeError: something in it waits for the GPU, or does not fit into its memory.
        """
        here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        self._stream.wait_stream(here)
        # Not `torch.cuda.graph`: it gives all free memory back first, which then is slowly taken again.
        with torch.cuda.stream(self._stream):
            run()  # libraries set themselves up at the first call, which cannot be recorded
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            finally:
                graph.capture_end()
        here.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
