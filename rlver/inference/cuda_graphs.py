"""Decoding steps as CUDA graphs.

A step launches hundreds of small kernels, and a GPU finishes them sooner than Python can launch them. A recorded step
is launched at once.

A recording holds for one number of rows and of visible slots, so both are rounded up. The surplus rows write to the
last slot, which no query sees.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, int], Tensor]
"""Maps one token (A, 1) of each of the first A rows, its position (A, 1), and the number of visible slots to hidden
states (A, hidden)."""
Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]

_ROWS = 8
_SLOTS = 256
_RECORD_AFTER = 3
"""The n-th step of a size is recorded, because recording costs about as much as n steps."""


def rounded_rows(count: int) -> int:
    """The number of rows in the recording of a step over `count` rows."""
    return 1 << (count - 1).bit_length() if count < _ROWS else -(-count // _ROWS) * _ROWS


@dataclass
class _Recorded:
    tokens: Tensor
    positions: Tensor
    replay: Replay


class DecodeGraphs:
    """Runs decoding steps, and replays a recording for sizes that recur.

    A recording reads weights and cache at their addresses. Call `clear` when one of them has moved.
    """

    def __init__(self, forward: Forward, recorder: Callable[[], Record] | None = None) -> None:
        """Record steps of `forward`, by default as CUDA graphs."""
        self._forward = forward
        self._recorder = recorder or CudaRecorder
        self._possible = True
        self.clear()

    def clear(self) -> None:
        """Drop all recordings."""
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._requested: Counter[tuple[int, int]] = Counter()
        self._record = self._recorder()

    def step(self, tokens: Tensor, positions: Tensor, visible: int, slots: int) -> Tensor:
        """Hidden states (A, hidden) of `forward`, valid until the next step.

        Args:
            tokens: (A, 1). The cache must have `rounded_rows(A)` rows.
            positions: (A, 1).
            visible: number of slots that queries may see.
            slots: number of slots of each row; the last one is scratch space.
        """
        count = len(tokens)
        size = rounded_rows(count), min(-(-visible // _SLOTS) * _SLOTS, slots)
        self._requested[size] += 1
        too_rare = self._requested[size] < _RECORD_AFTER
        if size not in self._recorded and (too_rare or not self._try_recording(size, tokens, slots)):
            return self._forward(tokens, positions, visible)
        recorded = self._recorded[size]
        recorded.tokens[:count] = tokens
        recorded.positions[:count] = positions
        recorded.positions[count:] = slots - 1
        return recorded.replay()[:count]

    def _try_recording(self, size: tuple[int, int], like: Tensor, slots: int) -> bool:
        """Record a step of this size. Returns False if the model cannot be recorded, and then never tries again."""
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
    """Records functions as CUDA graphs. All its recordings share the memory of their intermediate results."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, run: Replay) -> Replay:
        """Record `run`. Returns a function that does the same over the same tensors with a single launch.

        Raises:
            RuntimeError: `run` waits for the GPU, or does not fit into its memory.
        """
        here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        self._stream.wait_stream(here)
        # `torch.cuda.graph` would first return all free memory to the driver, and allocating it again is slow.
        with torch.cuda.stream(self._stream):
            run()  # libraries initialise themselves at the first call, which cannot be recorded
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
