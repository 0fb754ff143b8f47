"""Samples: what is trained is what was sampled, with the log-probs of separate forward passes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlver.core.dialogue import TokenRecord
from rlver.train.batch import TRUNK, Sample, collate, from_records, micro_batches
from rlver.train.forward import hidden_states

VOCABULARY = 250


Records = list[TokenRecord]
"""How the replies of one dialogue were sampled."""


def make_records(rng: random.Random, think: bool, turns: int) -> Records:
    """Records as a policy leaves them: replies are part of later prompts, or with thinking other ids instead."""

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(least, most))]

    context, records = some(3, 12), []
    for turn in range(turns):
        ids = some(1, 9)
        records.append(TokenRecord(list(context), ids, [-rng.random() for _ in ids]))
        if turn < turns - 1:
            context += (some(1, 5) if think else ids) + some(2, 8)
    return records


def make_dialogues(think: bool, count: int = 6, seed: int = 0) -> list[Records]:
    """Dialogues of one to five turns."""
    rng = random.Random(f"{think}:{seed}")
    return [make_records(rng, think, 1 + i % 5) for i in range(count)]


@torch.no_grad()
def logprobs(model: Any, samples: Sequence[Sample]) -> list[Tensor]:
    """(T,) log-probs of the trained tokens of each sample, from one batch."""
    batch = collate(samples)
    logits = model.lm_head(hidden_states(model, batch))
    values = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None])[:, 0]
    return list(values.split([len(sample.trained) for sample in samples]))


@torch.no_grad()
def separate(model: Any, records: Records) -> Tensor:
    """The same from one plain forward pass per turn."""
    values = []
    for record in records:
        ids = torch.tensor([record.prompt_ids + record.token_ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(record.prompt_ids) - 1 : -1]
        values.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(record.token_ids)[:, None])[:, 0])
    return torch.cat(values)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether log-probs agree to 1e-5."""
    return bool(torch.allclose(one, other, rtol=0, atol=1e-5))


modes = pytest.mark.parametrize("thinks", [[True] * 6, [False] * 6, [True, False] * 3], ids=["think", "plain", "mixed"])


def mixed_dialogues(thinks: Sequence[bool]) -> list[Records]:
    """One dialogue for each mode."""
    return [make_dialogues(think, i + 1)[i] for i, think in enumerate(thinks)]


@modes
def test_packed_turns_have_the_logprobs_of_separate_ones(model: Any, thinks: list[bool]) -> None:
    dialogues = mixed_dialogues(thinks)
    samples = [from_records(records) for records in dialogues]
    for records, together, sample in zip(dialogues, logprobs(model, samples), samples, strict=True):
        expected = separate(model, records)
        assert close(together, expected)
        assert close(logprobs(model, [sample])[0], expected)


@modes
def test_order_padding_and_split_change_nothing(model: Any, thinks: list[bool]) -> None:
    samples = [from_records(records) for records in mixed_dialogues(thinks)]
    expected = logprobs(model, samples)
    order = [4, 0, 5, 2, 1, 3]
    for i, values in zip(order, logprobs(model, [samples[i] for i in order]), strict=True):
        assert close(values, expected[i])
    longest = from_records(make_records(random.Random(9), thinks[0], 9))
    assert all(map(close, logprobs(model, [*samples, longest]), expected))
    for group in micro_batches(samples, 2 * max(map(len, samples))):
        for i, values in zip(group, logprobs(model, [samples[i] for i in group]), strict=True):
            assert close(values, expected[i])


@modes
def test_gradients_do_not_depend_on_the_packing(model: Any, thinks: list[bool]) -> None:
    """Trained as one batch or turn by turn: the same step."""
    dialogues = mixed_dialogues(thinks)

    def gradient(samples: Sequence[Sequence[Sample]]) -> Tensor:
        model.zero_grad()
        for group in samples:
            batch = collate(group)
            logits = model.lm_head(hidden_states(model, batch))
            torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    packed = gradient([[from_records(records) for records in dialogues]])
    apart = gradient([[from_records([record])] for records in dialogues for record in records])
    model.zero_grad()
    assert torch.allclose(packed, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max()))


@given(seed=st.integers(0, 10_000), think=st.booleans(), turns=st.integers(1, 6))
def test_what_is_trained_is_what_was_sampled(seed: int, think: bool, turns: int) -> None:
    records = make_records(random.Random(seed), think, turns)
    sample, trunk = from_records(records), records[-1].prompt_ids
    assert sample.ids[sample.trained].tolist() == [i for record in records for i in record.token_ids]
    assert sample.turns.tolist() == [turn for turn, record in enumerate(records) for _ in record.token_ids]
    assert sample.logprobs.tolist() == pytest.approx([p for record in records for p in record.logprobs])
    assert len(set(sample.trained.tolist())) == len(sample.trained)
    assert sample.ids[: len(trunk)].tolist() == trunk
    in_trunk = sum(len(record.token_ids) for record in records[:-1]) if not think else 0
    assert len(sample) == len(trunk) + sum(len(record.token_ids) for record in records) - in_trunk
    # Each token is predicted at the position before its own.
    assert (sample.positions[sample.sources] + 1 == sample.positions[sample.trained]).all()


@given(seed=st.integers(0, 10_000), thinks=st.lists(st.booleans(), min_size=1, max_size=4))
def test_every_token_sees_its_own_context_and_nothing_else(seed: int, thinks: list[bool]) -> None:
    rng = random.Random(seed)
    dialogues = [make_records(rng, think, rng.randint(1, 5)) for think in thinks]
    samples = [from_records(records) for records in dialogues]
    batch = collate(samples)
    width = batch.ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for row, (records, sample) in enumerate(zip(dialogues, samples, strict=True)):
        mask = causal if batch.mask is None else batch.mask[row, 0]
        for source, turn, target in zip(sample.sources, sample.turns, sample.trained, strict=True):
            record = records[turn]
            seen = mask[source].nonzero()[:, 0]
            order = batch.positions[row, seen].argsort()
            context = record.prompt_ids + record.token_ids
            assert batch.ids[row, seen[order]].tolist() == context[: sample.positions[target]]


def test_plain_dialogues_need_no_mask() -> None:
    """A mask would cost a slower attention; without thinking there is nothing to hide."""
    samples = [from_records(records) for records in make_dialogues(think=False)]
    assert collate(samples).mask is None
    assert all((sample.branches == TRUNK).any() for sample in samples)
    assert collate([from_records(make_records(random.Random(1), True, 3))]).mask is not None


def test_plain_dialogues_of_different_lengths_get_no_mask_of_the_models_making(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding that begins to count again looks to the model like packed sequences."""
    masks: list[Tensor | None] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    samples = [from_records(records) for records in make_dialogues(think=False)]
    assert len({len(sample) for sample in samples}) > 2
    hidden_states(model, collate(samples))
    assert masks and all(mask is None for mask in masks)


def test_a_batch_keeps_rows_and_targets_together() -> None:
    samples = [from_records(records) for records in mixed_dialogues([True, False, True])]
    batch = collate(samples)
    assert batch.ids.shape == batch.positions.shape == (3, max(map(len, samples)))
    start = 0
    for row, sample in enumerate(samples):
        part = slice(start, start + len(sample.trained))
        assert (batch.rows[part] == row).all()
        assert torch.equal(batch.targets[part], sample.ids[sample.trained])
        assert torch.equal(batch.sources[part], sample.sources)
        start = part.stop
    assert start == len(batch.rows) == len(batch.targets)


@given(lengths=st.lists(st.integers(4, 60), max_size=30), tokens=st.integers(1, 200))
def test_micro_batches_cover_everything_once(lengths: list[int], tokens: int) -> None:
    samples = [from_records([TokenRecord([0] * (length - 1), [1], [0.0])]) for length in lengths]
    groups = list(micro_batches(samples, tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(samples)))
    for group in groups:
        assert group
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= tokens
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_contexts_that_do_not_continue_each_other_are_refused() -> None:
    records = [TokenRecord([1, 2], [3], [0.0]), TokenRecord([1, 9, 3, 4], [5], [0.0])]
    with pytest.raises(ValueError, match="turn 1"):
        from_records(records)
