"""The critic's loss, token by token. Tensors are (N,): one entry per trained token."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of the critic; a value that moved more than `clip` earns nothing by it."""
    error = (values - returns) ** 2
    if clip is None:
        return 0.5 * error
    moved = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum(error, (moved - returns) ** 2)
