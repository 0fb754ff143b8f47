"""The reference: the policy as it was at the start of the run, from which the divergence is measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlver.inference.model_folder import has_adapters
from rlver.train.batch import Batch
from rlver.train.forward import hidden_states, token_logprobs
from rlver.train.models import adapters


class Reference:
    """Computes log-probabilities under the starting policy.

    In full training this is a frozen copy, which can be kept in CPU memory between uses (`offload`). With adapters it
    is the same model with its adapters switched off or, if the run started from a trained adapter, with a copy of that.
    """

    def __init__(self, policy: PreTrainedModel, temperature: float, logit_tokens: int = 0, offload: bool = False):
        self._temperature, self._logit_tokens = temperature, logit_tokens
        self._adapter: str | None = None
        self._is_policy = has_adapters(policy)
        self._storage = torch.device("cpu") if offload and not self._is_policy else policy.device
        self._device = policy.device
        if self._is_policy:
            self.model = policy
            if not adapters.changes_nothing(policy):
                adapters.copy_adapter(policy, adapters.START, trained=False)
                self._adapter = adapters.START
        else:
            self.model = copy.deepcopy(policy).requires_grad_(False).to(self._storage)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Keep an offloaded copy on the policy's device inside a `with` block."""
        self._move_to(self._device)
        try:
            yield
        finally:
            self._move_to(self._storage)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """(N,) log-probabilities of the trained tokens of a batch."""
        with adapters.using(self.model, self._adapter) if self._is_policy else nullcontext():
            hidden = hidden_states(self.model, batch)
            return token_logprobs(self.model, hidden, batch.targets, self._temperature, self._logit_tokens)

    def _move_to(self, device: torch.device) -> None:
        if not self._is_policy and self.model.device != device:
            self.model.to(device)
