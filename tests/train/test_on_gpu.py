"""The same on a GPU: recorded decoding steps, offloaded optimizer state, whole runs. Skipped where there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import LINES, algos, fresh, lines, quick

from rlver.inference.cuda_graphs import DecodeGraphs
from rlver.inference.engines.base import Sampled, Sampling
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.rollout import run as drive
from rlver.train.models.optimizer import MasterAdamW
from rlver.train.runs.training_run import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def replies(engine: BuiltInEngine, words: Any, count: int) -> list[Sampled]:
    """Conversations of the engine with two turns, sampled together; lengths differ."""
    sampling = Sampling(max_tokens=40, temperature=1.0, stop=frozenset({words.eos_token_id}))

    async def converse(number: int) -> list[Sampled]:
        place, found = engine.open(), []
        for turn in range(2):
            chunk = words.encode(" ".join(LINES[: 1 + (number + turn) % len(LINES)]), add_special_tokens=False)
            found.append(await engine.reply(place, chunk, 100 * number + turn, sampling))
        return found

    async def talk_at_once() -> list[list[Sampled]]:
        return await asyncio.gather(*(converse(number) for number in range(count)))

    return [sampled for talked in drive(talk_at_once()) for sampled in talked]


@pytest.mark.parametrize("count", [1, 6, 11])
def test_cuda_graphs_sample_what_plain_steps_do(words: Any, count: int) -> None:
    model = fresh(words).to("cuda")
    plain, recorded = BuiltInEngine(model), BuiltInEngine(model)
    plain._sampler.graphs = None
    expected = replies(plain, words, count)
    found = replies(recorded, words, count)
    graphs = recorded._sampler.graphs
    assert isinstance(graphs, DecodeGraphs) and graphs._recorded and graphs._possible
    for mine, other in zip(found, expected, strict=True):
        assert mine.ids == other.ids
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_offloaded_state_learns_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    start = [torch.randn(40, 30).bfloat16(), torch.randn(7).bfloat16(), torch.randn(5, 5)]
    here = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    there = [torch.nn.Parameter(tensor.to("cuda")) for tensor in start]
    optimizers = MasterAdamW(here, 1e-2, offload=True), MasterAdamW(there, 1e-2, offload=True)
    for step in range(5):
        for one, other in zip(here, there, strict=True):
            one.grad = torch.sin(one.detach().float() * 7 + step).to(one.dtype)
            other.grad = one.grad.to("cuda")
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))
    assert all(master.device.type == "cpu" for master in optimizers[1].state_dict()["state"][0].values())


@algos
def test_sampler_and_trainer_agree_on_a_gpu(base: Path, algo: Any, tmp_path: Path) -> None:
    run(quick(base, algo, device="cuda", dtype="float32"), base, tmp_path / "run")
    assert all(row["logprob_gap"] < 1e-4 for row in lines(tmp_path / "run"))


@algos
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": 4, "gradient_checkpointing": True},
        {"offload_optimizer": True, "offload_reference": True, "gradient_checkpointing": True, "logit_tokens": 5},
    ],
    ids=["plain", "lora", "offloaded"],
)
def test_runs_in_sixteen_bits(base: Path, algo: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run(quick(base, algo, device="cuda", **options), base, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert len(rows) == 4 and all(row["loss"] == row["loss"] for row in rows)
    # Sixteen bits keep about three digits of a logit.
    assert all(row["logprob_gap"] < 0.3 for row in rows)
