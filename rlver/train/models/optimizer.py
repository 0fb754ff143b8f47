"""AdamW for weights that are not float32, or whose optimizer's state has no room on the GPU.

A step changes a weight by less than 16 bits can tell, so that rounding would swallow it: the optimizer keeps a master
copy of each weight in float32, updates that one, and rounds it into the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float, *, offload: bool = False) -> torch.optim.Optimizer:
    """AdamW without weight decay; with master copies if a parameter is not float32, or if state is to be offloaded."""
    parameters = list(parameters)
    if offload or any(parameter.dtype != torch.float32 for parameter in parameters):
        return MasterAdamW(parameters, lr, offload=offload)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


class MasterAdamW(torch.optim.Optimizer):
    """PyTorch's AdamW on float32 master copies of the parameters, one after another.

    Args:
        offload: keep masters and moments in the CPU's memory and update there, in one pass over memory ("fused",
            six times as fast as PyTorch's plain AdamW on a CPU). Gradients go there and weights come back, parameter
            by parameter and in the parameter's type, through one piece of pinned memory, so that this is quick.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, *, offload: bool = False) -> None:
        super().__init__(parameters, {"lr": lr})
        self._pairs: list[tuple[nn.Parameter, torch.optim.AdamW]] = []
        for parameter in self.param_groups[0]["params"]:
            master = parameter.detach().to("cpu" if offload else parameter.device, copy=True).float()
            self._pairs.append((parameter, torch.optim.AdamW([master], lr=lr, weight_decay=0.0, fused=offload or None)))
        self._gates: dict[torch.dtype, Tensor] = {}
        """Of each type as many numbers in pinned memory as the largest parameter has."""
        if offload:
            on_gpu = [parameter for parameter, _ in self._pairs if parameter.is_cuda]
            for dtype in {parameter.dtype for parameter in on_gpu}:
                size = max(parameter.numel() for parameter in on_gpu if parameter.dtype == dtype)
                self._gates[dtype] = torch.empty(size, dtype=dtype, pin_memory=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for parameter, inner in self._pairs:
            if parameter.grad is None:
                continue
            master = _master(inner)
            inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            master.grad = self._through(parameter, parameter.grad).to(master.device, torch.float32)
            inner.step()
            master.grad = None
            parameter.copy_(self._through(parameter, master))

    def _through(self, parameter: nn.Parameter, numbers: Tensor) -> Tensor:
        """The parameter's gradient or master in pinned memory, where these numbers cross between GPU and CPU."""
        if not parameter.is_cuda or parameter.dtype not in self._gates:
            return numbers
        return self._gates[parameter.dtype][: parameter.numel()].view(parameter.shape).copy_(numbers)

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.AdamW` has it, with a `master` beside the moments of each parameter."""
        state = {i: {**inner.state[_master(inner)], "master": _master(inner)} for i, (_, inner) in self._numbered()}
        groups = [{**self.param_groups[0], "params": list(range(len(self._pairs)))}]
        return {"state": {i: slots for i, slots in state.items() if "step" in slots}, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError if the state is that of other parameters."""
        for i, (_, inner) in self._numbered():
            if i not in state_dict["state"]:
                continue  # a parameter that never had a gradient
            slots = dict(state_dict["state"][i])
            _master(inner).copy_(slots.pop("master"))
            inner.load_state_dict({"state": {0: slots}, "param_groups": inner.state_dict()["param_groups"]})

    def _numbered(self) -> Iterable[tuple[int, tuple[nn.Parameter, torch.optim.AdamW]]]:
        return enumerate(self._pairs)


def _master(inner: torch.optim.AdamW) -> Tensor:
    return inner.param_groups[0]["params"][0]
