"""Micro-batches on the cores of a CPU, a small model's side by side.

Gradients are added up in the order of the micro-batches, so the sums are the same to the bit whatever the number of
cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from rlver.inference.cores import Cores, Found, Part

Backward = Callable[[Tensor], None]
"""Takes a loss () and adds its gradients up."""


def learn(
    cores: Cores,
    work: Callable[[Part, Backward], Found],
    parts: Iterable[Part],
    parameters: Sequence[nn.Parameter],
) -> list[Found]:
    """Let `work` find losses in each part and hand them on; the parameters' gradients are added up."""
    if not cores.side_by_side:
        return [work(part, Tensor.backward) for part in parts]

    def apart(part: Part) -> tuple[Found, list[tuple[Tensor | None, ...]]]:
        kept: list[tuple[Tensor | None, ...]] = []

        def backward(loss: Tensor) -> None:
            kept.append(torch.autograd.grad(loss, parameters, allow_unused=True))

        return work(part, backward), kept

    found = []
    for one, kept in cores.map(apart, parts):
        found.append(one)
        for gradients in kept:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)
    return found
