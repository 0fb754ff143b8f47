"""The critic: the starting policy with a scalar head, which predicts the return from what has been said so far."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlver.inference.model_folder import has_adapters
from rlver.train.batch import Batch
from rlver.train.forward import hidden_states
from rlver.train.models import adapters


class Critic(nn.Module):
    """A copy of the policy with a scalar head. Predicts the return before each token; starts at zero everywhere."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy)
        self.head = _zero_head(policy)

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the trained tokens of a batch."""
        return self.head(hidden_states(self.body, batch).float()).squeeze(-1)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that get a gradient: all but those of a separate output layer."""
        used = {id(p) for p in self.body.get_decoder().parameters()} | {id(p) for p in self.head.parameters()}
        return [p for p in self.parameters() if id(p) in used]


class AdapterCritic(nn.Module):
    """A second adapter on the policy's frozen base with a scalar head; its parameters are those of these two only."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        adapters.copy_adapter(policy, adapters.CRITIC, trained=True)
        parameters = adapters.adapter_parameters(policy, adapters.CRITIC)
        self.adapter = nn.ParameterDict({name.replace(".", "/"): value for name, value in parameters.items()})
        self.head = _zero_head(policy)
        self._body = (policy,)  # a tuple, so that the policy is not registered as a submodule

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the trained tokens of a batch."""
        (body,) = self._body
        with adapters.using(body, adapters.CRITIC):
            return self.head(hidden_states(body, batch).float()).squeeze(-1)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All parameters."""
        return list(self.parameters())


def make_critic(policy: PreTrainedModel) -> Critic | AdapterCritic:
    """The critic of a policy: a second adapter if the policy is one, otherwise a copy."""
    return AdapterCritic(policy) if has_adapters(policy) else Critic(policy)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 as good as a constant; 0 if all returns are equal."""
    variance = returns.var(correction=0)
    if variance < 1e-12:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)


def _zero_head(policy: PreTrainedModel) -> nn.Linear:
    """A linear layer of zeros. It is float32 whatever the policy is, because values differ by fractions of a point."""
    head = nn.Linear(policy.config.hidden_size, 1, device=policy.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
