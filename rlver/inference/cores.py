"""CPU cores: one forward pass per core for a small model, every operation spread over all cores for a large one.

The operations of a small model are too short to be worth sharing: two cores hardly speed them up. Whole forward passes
have only the weights in common. No pass depends on what runs beside it, so the numbers are identical to the bit for any
number of cores. That holds only while each operation runs on one core, because PyTorch and the libraries below it do
not promise identical bits for an operation that several cores share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from rlver.inference.compatibility import recomputes_layers
from rlver.inference.decoder import position_limit
from rlver.inference.model_folder import has_adapters

_SMALL = 50_000_000
"""Largest number of parameters of a small model."""
_AVAILABLE = torch.get_num_threads()
"""Torch's own number of threads, read before anything changes it."""

Part = TypeVar("Part")
Result = TypeVar("Result")


class Cores:
    """The CPU cores that compute the forward passes of a model."""

    def __init__(self, model: PreTrainedModel, threads: int = 0) -> None:
        """Set up the cores. This also sets torch's number of threads for everything else in the calling thread.

        Args:
            threads: largest number of cores at work; 0 takes torch's own number of threads.
        """
        self.count = threads or _AVAILABLE
        self.independent = _independent(model)
        """Whether passes of the model may run at the same time."""
        self._pool = None
        if self.independent and self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "pass", torch.set_num_threads, (1,))
        torch.set_num_threads(1 if self.side_by_side else self.count)

    @property
    def side_by_side(self) -> bool:
        """Whether `map` computes several parts at the same time."""
        return self._pool is not None

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """The results of `work` for all parts, in order. Gradients are on where they are on for the caller."""
        if self._pool is None:
            return map(work, parts)
        gradients = torch.is_grad_enabled()

        def in_thread(part: Part) -> Result:
            with torch.set_grad_enabled(gradients):  # threads of the pool have a setting of their own
                return work(part)

        return self._pool.map(in_thread, parts)


def equal_parts(rows: int, most: int) -> list[slice]:
    """Divide rows into parts of equal size. The parts do not depend on the number of cores.

    Args:
        most: largest number of parts. It is rounded down to a power of two, and to at least one.
    """
    count = min(2 ** max(0, most.bit_length() - 1), rows)
    size = -(-rows // count)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _independent(model: PreTrainedModel) -> bool:
    """Whether the model is small and its passes neither share state nor draw random numbers."""
    return (
        model.device.type == "cpu"
        and model.num_parameters() <= _SMALL
        and not has_adapters(model)  # policy, reference and critic switch adapters on the same model
        and not recomputes_layers(model)
        and not position_limit(model.config)
        and not any(value for key, value in model.config.to_dict().items() if "drop" in key or "jitter" in key)
    )
