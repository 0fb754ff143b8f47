"""The cores of a CPU: for a small model one forward pass each, for a large one every operation spread over all.

The operations of a small model are too short to be shared: two cores hardly speed them up. Whole passes share no more
than the weights. What is computed in a pass does not depend on who else computes, so the numbers are the same to the
bit whatever the number of cores. That holds only while each operation has one core: in one that several share, PyTorch
and the libraries below it promise no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from rlver.inference.decoder import position_limit
from rlver.inference.model_folder import has_adapters

_SMALL = 50_000_000
"""Parameters up to which a model's operations are short."""
_FOUND = torch.get_num_threads()
"""Cores that torch would use, read before anybody says otherwise."""

Part = TypeVar("Part")
Found = TypeVar("Found")


class Cores:
    """Those that work at the forward passes of a model."""

    def __init__(self, model: PreTrainedModel, threads: int = 0) -> None:
        """Share out the cores, also among the operations of whatever else this thread has torch do.

        Args:
            threads: most that work at once; 0 is as many as torch finds.
        """
        self.count = threads or _FOUND
        self.independent = _independent(model)
        """Whether passes of the model may go on side by side."""
        self._pool = None
        if self.independent and self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "pass", torch.set_num_threads, (1,))
        torch.set_num_threads(1 if self.side_by_side else self.count)

    @property
    def side_by_side(self) -> bool:
        """Whether parts are computed at the same time."""
        return self._pool is not None

    def map(self, work: Callable[[Part], Found], parts: Iterable[Part]) -> Iterator[Found]:
        """What `work` finds in each part, in order, with gradients where the caller has them."""
        if self._pool is None:
            return map(work, parts)
        wanted = torch.is_grad_enabled()

        def alike(part: Part) -> Found:
            with torch.set_grad_enabled(wanted):
                return work(part)

        return self._pool.map(alike, parts)


def equal_parts(rows: int, worth: int) -> list[slice]:
    """Rows in parts of equal size, as many as a power of two and at most `worth`: the same on any number of cores."""
    count = min(2 ** max(0, worth.bit_length() - 1), rows)
    size = -(-rows // count)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _independent(model: PreTrainedModel) -> bool:
    """Whether it is small, and its passes change and draw nothing in common."""
    return (
        model.device.type == "cpu"
        and model.num_parameters() <= _SMALL
        and not has_adapters(model)  # one policy, reference or critic at a time
        and not model.is_gradient_checkpointing
        and not position_limit(model.config)
        and not any(value for key, value in model.config.to_dict().items() if "drop" in key or "jitter" in key)
    )
