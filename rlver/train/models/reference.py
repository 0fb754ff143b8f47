"""The reference: the policy as it was at the start, from which the divergence is measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlver.inference.model_folder import has_adapters
from rlver.train.batch import Batch, hidden_states
from rlver.train.models import adapters
from rlver.train.models.logits import token_logprobs


class Reference:
    """Log-probs under the starting policy.

    In full training this is a frozen copy, which may wait in the CPU's memory. With adapters it is the same model
    with the adapters switched off; or, where the run began from a trained adapter, with a copy of that one.
    """

    def __init__(self, policy: PreTrainedModel, temperature: float, logit_tokens: int = 0, offload: bool = False):
        self._temperature, self._logit_tokens = temperature, logit_tokens
        self._adapter: str | None = None
        self._shared = has_adapters(policy)
        self._home = torch.device("cpu") if offload and not self._shared else policy.device
        self._work = policy.device
        if self._shared:
            self.model = policy
            if not adapters.changes_nothing(policy):
                adapters.copy_adapter(policy, adapters.START, trained=False)
                self._adapter = adapters.START
        else:
            self.model = copy.deepcopy(policy).requires_grad_(False).to(self._home)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the copy on the policy's device, where it lies on the CPU between uses."""
        self._move(self._work)
        try:
            yield
        finally:
            self._move(self._home)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """(N,) log-probs of the trained tokens of a batch."""
        with adapters.using(self.model, self._adapter) if self._shared else nullcontext():
            hidden = hidden_states(self.model, batch)
            return token_logprobs(self.model, hidden, batch.targets, self._temperature, self._logit_tokens)

    def _move(self, device: torch.device) -> None:
        if not self._shared and self.model.device != device:
            self.model.to(device)
