"""A run whose replies are sampled by a server: with the weights of every step, in training and in evaluation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from token_server import TokenServer
from toys import lines, quick

from rlver.train.config import load_config
from rlver.train.runs.training_run import run


def test_a_server_samples_from_the_weights_of_every_step(base: Path, speakers: Any, tmp_path: Path) -> None:
    with TokenServer(copy.deepcopy(speakers[False])) as server:
        engine = f"vllm@{server.url}"
        assert load_config(None, [f"engine={engine}"], {}).importance_cap == 2.0
        config = quick(base, steps=2, engine=engine, importance_cap=2.0, eval_every=1, eval_n=2)
        trained = run(config, base, tmp_path / "run")
        served = server.served[""].state_dict()
    # The evaluation after the last step asked the policy that was saved, not the one before the step.
    saved = load_file(trained / "model.safetensors")
    assert all(torch.equal(served[name], weight) for name, weight in saved.items())
    start = load_file(base / "model.safetensors")
    assert any(not torch.equal(weight, start[name]) for name, weight in saved.items())
    for line in lines(tmp_path / "run"):
        assert line["logprob_gap"] < 1e-3 and abs(line["importance"] - 1) < 1e-3
        assert "eval/vanilla/score" in line
