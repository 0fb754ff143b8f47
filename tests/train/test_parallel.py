"""Micro-batches side by side: the same numbers to the bit on any number of cores, or none at once where that fails."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from operations import ROOT, first_difference
from toys import quick, same
from transformers import Qwen2ForCausalLM

from rlver.inference.cores import Cores
from rlver.train.config import ModelSettings
from rlver.train.forward import Backward, accumulate_gradients
from rlver.train.models import adapters
from rlver.train.models.loading import checkpoint_gradients
from rlver.train.runs.training_run import run


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_a_run_is_the_same_on_any_number_of_cores(base: Path, tmp_path: Path, algo: str) -> None:
    def trained(threads: int, name: str = "run") -> Path:
        # One dialogue a micro-batch; with a critic, two losses each.
        folder = tmp_path / f"{name}-{threads}"
        run(quick(base, algo, threads=threads, micro_tokens=1), base, folder)
        return folder

    assert same(trained(1), trained(3)), first_difference(lambda: trained(1, "again"), lambda: trained(3, "again"))


def test_the_first_operation_that_differs_is_named(model: Qwen2ForCausalLM) -> None:
    def work(part: int) -> Any:
        numbers = torch.arange(6.0) + part
        return (numbers * (2 if threading.current_thread() is threading.main_thread() else 3)).sum()

    def passes(threads: int) -> Any:
        return lambda: list(Cores(model, threads).map(work, range(4)))

    message = first_difference(passes(1), passes(2))
    assert message.startswith("operation 3 of 16 is the first") and "aten.mul.Tensor(float32 [6])" in message
    assert f"in MainThread at {Path(__file__).relative_to(ROOT)}:" in message and "return (numbers * (2 if" in message
    assert first_difference(passes(2), passes(3)) == "watched once more, all 16 operations found the same"


def test_parallel_gradients_equal_sequential_ones(model: Qwen2ForCausalLM) -> None:
    parts = [torch.tensor([[n, n + 1, n + 2]]) for n in range(1, 9)]
    names: set[str] = set()

    def work(ids: Any, backward: Backward) -> float:
        names.add(threading.current_thread().name)
        losses = model(ids).logits.square().mean(), model(ids).logits.mean()
        for loss in losses:
            backward(loss)
        return float(losses[0].detach())

    found = []
    for threads in (1, 2):
        model.zero_grad()
        losses = accumulate_gradients(work, parts, list(model.parameters()), Cores(model, threads))
        found.append((losses, [parameter.grad for parameter in model.parameters()]))
    (one, ones), (other, others) = found
    model.zero_grad()
    assert one == other and all(map(torch.equal, ones, others))
    assert "MainThread" in names and any(name.startswith("pass") for name in names)


def test_workers_keep_gradients_only_where_the_caller_does(model: Qwen2ForCausalLM) -> None:
    cores = Cores(model, 2)
    with torch.no_grad():
        assert list(cores.map(lambda part: torch.is_grad_enabled(), range(3))) == [False] * 3
    assert list(cores.map(lambda part: torch.is_grad_enabled(), range(3))) == [True] * 3


def test_what_fails_in_a_worker_fails_here(model: Qwen2ForCausalLM) -> None:
    def work(part: int, backward: Backward) -> None:
        raise MemoryError(f"part {part}")

    with pytest.raises(MemoryError, match="part 1"):
        accumulate_gradients(work, [1, 2, 3], list(model.parameters()), Cores(model, 2))


def test_passes_that_share_state_run_one_after_another(model: Qwen2ForCausalLM, monkeypatch: Any) -> None:
    assert Cores(model, 2).side_by_side and not Cores(model, 1).side_by_side
    dropping, adapted, checkpointed = (copy.deepcopy(model) for _ in range(3))
    dropping.config.attention_dropout = 0.1
    adapters.add_adapter(adapted, adapters.lora_config(ModelSettings(lora=2)), "base")
    checkpoint_gradients(checkpointed)
    for other in (dropping, adapted, checkpointed):
        assert not Cores(other, 2).side_by_side
    monkeypatch.setattr("rlver.inference.cores._SMALL", 1000)
    assert not Cores(model, 2).side_by_side and torch.get_num_threads() == 2


def test_a_small_model_leaves_no_operation_to_several_cores(model: Qwen2ForCausalLM) -> None:
    torch.set_num_threads(2)
    Cores(model, 2)
    assert torch.get_num_threads() == 1
