"""The critic: the starting policy with one number on top, the value of what has been said so far."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlver.inference.model_folder import has_adapters
from rlver.train.batch import Batch, hidden_states
from rlver.train.models import adapters


class Critic(nn.Module):
    """Predicts, before each token, the return that is to come. Starts at zero everywhere. This one is a copy."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy)
        self.head = _zero_head(policy)

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the trained tokens of a batch."""
        return self.head(hidden_states(self.body, batch).float()).squeeze(-1)

    def learning(self) -> list[nn.Parameter]:
        """The parameters that get a gradient (a separate output embedding does not)."""
        used = {id(p) for p in self.body.get_decoder().parameters()} | {id(p) for p in self.head.parameters()}
        return [p for p in self.parameters() if id(p) in used]


class AdapterCritic(nn.Module):
    """The same as an adapter of its own on the policy's frozen base: `parameters` and `state_dict` hold no more."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        adapters.copy_adapter(policy, adapters.CRITIC, trained=True)
        found = adapters.adapter_parameters(policy, adapters.CRITIC)
        self.adapter = nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in found.items()})
        self.head = _zero_head(policy)
        self._body = (policy,)  # in a tuple it is no submodule

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the trained tokens of a batch."""
        (body,) = self._body
        with adapters.using(body, adapters.CRITIC):
            return self.head(hidden_states(body, batch).float()).squeeze(-1)

    def learning(self) -> list[nn.Parameter]:
        """All parameters."""
        return list(self.parameters())


def make_critic(policy: PreTrainedModel) -> Critic | AdapterCritic:
    """The critic of a policy: an adapter beside the policy's, or a copy."""
    return AdapterCritic(policy) if has_adapters(policy) else Critic(policy)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant; 0 if returns are alike."""
    variance = returns.var(correction=0)
    if variance < 1e-12:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)


def _zero_head(policy: PreTrainedModel) -> nn.Linear:
    """In float32, whatever the policy is: values are regressed to fractions of a point."""
    head = nn.Linear(policy.config.hidden_size, 1, device=policy.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
