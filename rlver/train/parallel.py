"""The cores of a CPU: for a small model one micro-batch each, for a large one every operation spread over all.

The operations of a small model are too short to be shared: two cores hardly speed them up. Whole forward and backward
passes share no more than the weights, and gradients are added up in the order of the micro-batches, so the sums are
the same to the bit whatever the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlver.policies.decoder import position_limit
from rlver.train.models import adapters

_SMALL = 50_000_000
"""Parameters up to which a model's operations are short."""
_FOUND = torch.get_num_threads()
"""Cores that torch would use, read before anybody says otherwise."""

Part = TypeVar("Part")
Found = TypeVar("Found")
Backward = Callable[[Tensor], None]
"""Takes a loss () and adds its gradients up."""


class Cores:
    """Those that work at the micro-batches of a step."""

    def __init__(self, model: PreTrainedModel, threads: int = 0) -> None:
        """Share out the cores, also among the operations of whatever else this thread has torch do.

        Args:
            threads: most that work at once; 0 is as many as torch finds.
        """
        self.count = threads = threads or _FOUND
        self._pool = None
        if threads > 1 and _independent(model):
            self._pool = ThreadPoolExecutor(threads, "micro-batch", torch.set_num_threads, (1,))
        torch.set_num_threads(1 if self.side_by_side else threads)

    @property
    def side_by_side(self) -> bool:
        """Whether micro-batches are computed at the same time."""
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

    def learn(
        self, work: Callable[[Part, Backward], Found], parts: Iterable[Part], parameters: Sequence[nn.Parameter]
    ) -> list[Found]:
        """Let `work` find losses in each part and hand them on; the parameters' gradients are added up."""
        if self._pool is None:
            return [work(part, Tensor.backward) for part in parts]

        def apart(part: Part) -> tuple[Found, list[tuple[Tensor | None, ...]]]:
            kept: list[tuple[Tensor | None, ...]] = []

            def backward(loss: Tensor) -> None:
                kept.append(torch.autograd.grad(loss, parameters, allow_unused=True))

            return work(part, backward), kept

        found = []
        for one, kept in self.map(apart, parts):
            found.append(one)
            for gradients in kept:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if parameter.grad is None:
                        parameter.grad = gradient
                    elif gradient is not None:
                        parameter.grad.add_(gradient)
        return found


def _independent(model: PreTrainedModel) -> bool:
    """Whether passes of a model may go on side by side: it is small, and they change and draw nothing in common."""
    return (
        model.device.type == "cpu"
        and model.num_parameters() <= _SMALL
        and not adapters.has_adapters(model)  # one policy, reference or critic at a time
        and not model.is_gradient_checkpointing
        and not position_limit(model.config)
        and not any(value for key, value in model.config.to_dict().items() if "drop" in key or "jitter" in key)
    )
