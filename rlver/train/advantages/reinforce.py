"""REINFORCE++: returns over the batch's mean and spread, without a critic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlver.train.advantages.whiten import whiten


def reinforce_plus_plus(returns: Sequence[Tensor], baselines: Sequence[Tensor]) -> list[Tensor]:
    """Returns by token, less a baseline, whitened over all tokens of the batch (arXiv 2501.03262, section 3).

    Args:
        returns: (T,) per dialogue.
        baselines: (T,) per dialogue: zeros, or with several rollouts a profile the mean return of the peers
            ("REINFORCE++-baseline", section 3.3).
    """
    sizes = [len(row) for row in returns]
    return list(whiten(torch.cat(list(returns)) - torch.cat(list(baselines))).split(sizes))
