"""Shared prefixes: they are computed once, and states and gradients are those of separately computed rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from families import make_model, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlver.core.dialogue import TokenRecord
from rlver.train.batch import Batch, Sample, collate, find_prefix, from_records, micro_batches
from rlver.train.forward import hidden_states
from rlver.train.models.loading import checkpoint_gradients

MODELS = ["qwen2.5", "qwen2-window", "qwen3", "llama3", "gemma2", "gemma3", "mistral", "mistral-unigram"]
SYSTEM = 14


def make_samples(groups: Sequence[int] = (3, 2, 1), seed: int = 0, think: bool = False) -> list[Sample]:
    """Dialogues of different lengths: all begin with the same system prompt, and those of a group with more."""
    rng = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(3, 250) for _ in range(rng.randint(least, most))]

    system, samples = some(SYSTEM, SYSTEM), []
    for size in groups:
        opening = system + some(4, 8)
        for _ in range(size):
            context, records = list(opening), list[TokenRecord]()
            for _ in range(rng.randint(1, 3)):
                ids = some(2, 7)
                context += [] if not records else ([] if think else records[-1].token_ids) + some(2, 5)
                records.append(TokenRecord(list(context), ids, [-1.0] * len(ids)))
            samples.append(from_records(records))
    return samples


def apart(batch: Batch) -> Batch:
    """The same without anything shared."""
    return replace(batch, prefix=None)


def states_and_gradients(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """States of the trained tokens; and what an uneven sum over them says of all parameters."""
    model.zero_grad()
    states = hidden_states(model, batch)
    (states * torch.sin(torch.arange(states.numel()).view_as(states))).sum().backward()
    return states.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_alike(model: Any, batch: Batch) -> None:
    """States and gradients of both ways, to a few millionths of the largest."""
    (shared, found), (alone, expected) = states_and_gradients(model, batch), states_and_gradients(model, apart(batch))
    assert torch.allclose(shared, alone, rtol=0, atol=5e-6 * float(alone.abs().max()))
    assert found.keys() == expected.keys() and len(found) > 10
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=5e-6 * largest), name


def count_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of tokens of each pass through the decoder."""
    counts: list[int] = []
    decoder = model.get_decoder()
    forward = decoder.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counted)
    return counts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("groups", [(4,), (3, 2, 1), (1, 1, 1)], ids=["group", "groups", "system"])
def test_gradients_are_those_of_rows_alone(name: str, groups: tuple[int, ...]) -> None:
    model = make_model(name, make_tokenizer(name))
    batch = collate(make_samples(groups))
    assert batch.prefix is not None and len({len(s) for s in make_samples(groups)}) > 1
    check_alike(model, batch)


def test_gradients_are_the_same_every_time(model: Any) -> None:
    """To the bit, on two threads: gradients of many rows for one prefix are added in a fixed order."""
    # Long ones: a few numbers are added up by one thread.
    records = [TokenRecord([7] * 600 + [g] * 4, [8, 9], [-1.0, -1.0]) for g in range(3)] * 8
    batch = collate([from_records([record]) for record in records])
    assert batch.prefix is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [states_and_gradients(model, batch)[1] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


def test_nothing_is_computed_twice(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(make_samples((4, 4)))
    assert batch.prefix is not None
    depth = batch.prefix.ids.shape[1]
    assert depth > SYSTEM and len(batch.prefix.ids) == 2 and batch.prefix.owners.tolist() == [0] * 4 + [1] * 4
    counts = count_tokens(model, monkeypatch)
    hidden_states(model, batch)
    assert counts == [2 * depth, batch.ids.numel() - 8 * depth]


def test_rollouts_of_a_profile_stand_together_where_their_lengths_allow() -> None:
    """Whatever order the update draws."""
    rng = random.Random(0)
    records = [TokenRecord([7] * SYSTEM + [g] * 6, [rng.randrange(99)], [-1.0]) for g in range(4)] * 4
    rng.shuffle(records)
    samples = [from_records([record]) for record in records]
    for part in micro_batches(samples, 8 * len(samples[0])):
        prefix = collate([samples[i] for i in part]).prefix
        assert prefix is not None and prefix.ids.shape == (2, SYSTEM + 5)


def test_where_a_layer_is_computed_again_nothing_is_shared(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = collate(make_samples())
    _, expected = states_and_gradients(model, batch)
    counts = count_tokens(model, monkeypatch)
    checkpoint_gradients(model)
    model.train()
    try:
        with caplog.at_level("WARNING"):
            _, found = states_and_gradients(model, batch)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert counts == [batch.ids.numel()] and not caplog.records
    assert all(torch.allclose(found[name], gradient, atol=1e-4) for name, gradient in expected.items())


def test_position_embeddings_that_depend_on_the_length_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.3,
        rope_parameters=rope,
    )
    model, batch = transformers.LlamaForCausalLM(config).eval(), collate(make_samples())
    assert batch.prefix is not None and batch.ids.shape[1] > 24
    counts = count_tokens(model, monkeypatch)
    with torch.no_grad():
        assert torch.equal(hidden_states(model, batch), hidden_states(model, apart(batch)))
    assert counts == [batch.ids.numel()] * 2


def test_packed_turns_share_nothing() -> None:
    samples = [sample for seed in range(3) for sample in make_samples(seed=seed, think=True)]
    batch = collate(samples)
    assert batch.mask is not None and batch.prefix is None


def test_what_predicts_a_trained_token_is_never_shared() -> None:
    """Also where dialogues are alike to the end, or one opening is the beginning of another's."""
    short, long = (from_records([TokenRecord([5] * length, [6, 7], [-1.0, -1.0])]) for length in (9, 12))
    for samples in ([short, short], [short, long, long, short]):
        batch = collate(samples)
        assert batch.prefix is not None and batch.prefix.ids.shape[1] == 8
        assert int((batch.sources - 8).min()) == 0
    assert collate([short]).prefix is None


_rows = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=7)


@given(rows=_rows)
def test_the_depth_is_the_one_that_saves_most(rows: list[list[int]]) -> None:
    tokens = 8 * len(rows)
    depths = range(min(map(len, rows)) + 1)
    saved = [depth * (len(rows) - len({tuple(row[:depth]) for row in rows})) for depth in depths]
    prefix = find_prefix(rows, tokens)
    if prefix is None:
        assert max(saved) < 0.05 * tokens
        return
    depth = prefix.ids.shape[1]
    assert saved[depth] == max(saved) >= 0.05 * tokens
    assert prefix.ids[prefix.owners].tolist() == [row[:depth] for row in rows]
    assert len(prefix.ids) == len({tuple(row[:depth]) for row in rows})
