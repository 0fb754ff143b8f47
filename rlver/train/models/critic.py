"""The critic: a copy of the starting policy with one number on top, the value of what has been said so far."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlver.train.samples import Batch, hidden_states


class Critic(nn.Module):
    """Predicts, before each token, the return that is to come. Starts at zero everywhere."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the trained tokens of a batch."""
        return self.head(hidden_states(self.body, batch)).squeeze(-1)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant; 0 if returns are alike."""
    variance = returns.var(correction=0)
    if variance < 1e-12:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)


def trainable(critic: Critic) -> list[nn.Parameter]:
    """The critic's parameters that get a gradient (a separate output embedding does not)."""
    used = {id(p) for p in critic.body.get_decoder().parameters()} | {id(p) for p in critic.head.parameters()}
    return [p for p in critic.parameters() if id(p) in used]
