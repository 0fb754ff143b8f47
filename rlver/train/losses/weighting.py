"""How much each token counts in the loss: the losses of tokens are summed up with these weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlver.train.settings import Weighting


def token_weights(turns: Sequence[Tensor], weighting: Weighting, longest: int) -> list[Tensor]:
    """(T,) weights of the tokens of each of the B dialogues of an update.

    Args:
        turns: (T,) turn of each token.
        longest: most tokens that a dialogue can have; for `constant`.
    """
    count = len(turns)
    if weighting == "dialogue":
        return [torch.full((len(row),), 1 / len(row)) / count for row in turns]
    if weighting == "turn":
        sizes = [torch.bincount(row) for row in turns]
        replies = sum(int((size > 0).sum()) for size in sizes)
        return [1 / size[row] / replies for row, size in zip(turns, sizes, strict=True)]
    whole = sum(map(len, turns)) if weighting == "token" else count * longest
    return [torch.full((len(row),), 1 / whole) for row in turns]
