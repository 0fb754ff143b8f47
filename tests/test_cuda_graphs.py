"""Recorded decoding steps: the same replies as step by step, from few recordings that never outlive what they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlver.inference.cuda_graphs import DecodeGraphs, Replay, rounded_rows
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.inference.sampler import Sampler
from rlver.policies.local import LocalPolicy
from tests.test_sampler import assert_same_records, converse, local, plain_logits


class Recorder:
    """Stands in for a GPU's: a replay reads the same tensors, and overwrites what it has returned before."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.replayed = 0

    def __call__(self, run: Replay) -> Replay:
        out = run().clone()
        self.sizes.append(len(out))

        def replay() -> Tensor:
            self.replayed += 1
            return out.copy_(run())

        return replay


def recording(policy: LocalPolicy, recorder: Any) -> LocalPolicy:
    """The policy, sampling from recordings."""
    assert isinstance(policy.engine, BuiltInEngine)
    sampler = policy.engine._sampler
    sampler.graphs = DecodeGraphs(sampler._decode, lambda: recorder)
    return policy


@pytest.mark.parametrize("count", [3, 6, 11])
def test_replies_are_the_same_with_recordings(model: Any, tokenizer: Any, count: int) -> None:
    recorder = Recorder()
    plain = converse(local(model, tokenizer), range(count))
    recorded = converse(recording(local(model, tokenizer), recorder), range(count))
    for mine, other in zip(recorded, plain, strict=True):
        assert_same_records(mine, other)
    assert recorder.replayed > 2 * len(recorder.sizes) > 0
    assert set(recorder.sizes) <= {1, 2, 4, 8, 16}


@torch.inference_mode()
def test_resting_rows_keep_what_they_hold_while_others_are_replayed(model: Any, tokenizer: Any) -> None:
    """A recording over four rows writes for two of them; the others go on later as if nothing had happened."""
    sampler, held = Sampler(model), [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
    sampler.graphs = DecodeGraphs(sampler._decode, Recorder)
    sampler.feed(range(4), [0] * 4, held)
    for count in [4] * 4 + [3] * 6 + [4] * 3:
        lengths = torch.tensor([[len(ids)] for ids in held[:count]])
        logits = sampler.step(torch.full((count, 1), 20), lengths, int(lengths.max()) + 1)
        for row in range(count):
            held[row].append(20)
            assert torch.allclose(logits[row], plain_logits(model, held[row])[-1], atol=1e-4)


@torch.inference_mode()
def test_recordings_are_dropped_when_the_cache_moves(model: Any, tokenizer: Any) -> None:
    recorder = Recorder()
    sampler = Sampler(model)
    sampler.graphs = DecodeGraphs(sampler._decode, lambda: recorder)
    sampler.feed([0, 1], [0, 0], [[1], [1]])

    def steps(start: int, count: int) -> None:
        for at in range(start, start + count):
            sampler.step(torch.ones(2, 1, dtype=torch.long), torch.full((2, 1), at), at + 1)

    steps(1, 10)
    assert len(recorder.sizes) == 1
    sampler.cache.reserve(2, 700)
    steps(11, 10)
    assert len(recorder.sizes) == 2
    sampler.clear()
    sampler.feed([0, 1], [0, 0], [[1], [1]])
    steps(1, 10)
    assert len(recorder.sizes) == 3


def test_a_model_that_cannot_be_recorded_samples_without(model: Any, tokenizer: Any) -> None:
    def fail(run: Replay) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain = converse(local(model, tokenizer), range(3))
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted when stream is capturing") as warnings:
        dialogues = converse(recording(local(model, tokenizer), fail), range(3))
    assert [dialogue.turns for dialogue in dialogues] == [dialogue.turns for dialogue in plain]
    assert len(warnings) == 1


def test_sizes_are_few() -> None:
    assert [rounded_rows(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 63)] == [1, 2, 4, 8, 8, 16, 16, 24, 64]
