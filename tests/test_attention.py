"""Decoding without repeated keys gives what the model's own attention gives, and leaves the model as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlver.inference import attention
from rlver.inference.cores import Cores
from rlver.inference.sampler import Sampler


@pytest.mark.parametrize(("heads", "shared"), [(6, 1), (6, 2), (6, 3), (6, 6)])
@torch.inference_mode()
def test_steps_are_those_of_repeated_keys(heads: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2}
    config = Qwen2Config(num_attention_heads=heads, num_key_value_heads=shared, initializer_range=0.5, **shape)
    model, calls = Qwen2ForCausalLM(config).eval(), []
    attend = attention.scaled_dot_product_attention
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or attend(*a, **k))
    logits = []
    for fold in (True, False):
        with monkeypatch.context() as patch:
            if not fold:
                patch.setattr(attention, "_PLAIN", "none")
            sampler = Sampler(model)
            sampler.feed([0, 1, 2], [0, 0, 0], [[3] * 9, [4] * 5, [5, 6, 7]])
            positions = torch.tensor([[9], [5], [3]])
            logits.append([sampler.step(torch.tensor([[1], [2], [3]]), positions + k, 10 + k) for k in range(4)])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*logits, strict=True))
    assert len(calls) == (0 if heads == shared else 2 * 4)
    assert model.config._attn_implementation == "sdpa"


# One or two queries for each head of keys: a product of so few rows may depend on where its numbers lie in memory.
@pytest.mark.parametrize("shared", [6, 3])
@torch.inference_mode()
def test_cores_change_no_bit(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2}
    model = Qwen2ForCausalLM(Qwen2Config(num_attention_heads=6, num_key_value_heads=shared, **shape)).eval()
    names: list[str] = []
    attend = attention.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Any:
        names.append(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        return attend(*args, **kwargs)

    monkeypatch.setattr(attention, "_PART", 100)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    logits = []
    for threads in (1, 2, 3):
        sampler = Sampler(model, Cores(model, threads))
        sampler.feed(range(5), [0] * 5, [[3 + row] * 9 for row in range(5)])
        tokens, positions = torch.arange(5)[:, None], torch.full((5, 1), 9)
        logits.append(torch.stack([sampler.step(tokens, positions + k, 10 + k) for k in range(8)]))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert "MainThread" in names and any(name.startswith("pass") for name in names)
