"""Samples: dialogues as token ids for a forward pass, exactly as they were sampled.

Without thinking, a dialogue is one sequence. With thinking, every turn has a context of its own (the replies
before it stand there without their thoughts), so every turn is a sample of its own. These samples share almost
all of their context, and are packed into one tree: the context as trunk, and each reply with its thoughts as a
branch that sees the trunk up to where it was sampled, and itself. The numbers are those of separate samples, at
about a third of their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlver.core.dialogue import Dialogue, TokenRecord
from rlver.inference.decoder import attention_mask
from rlver.train.shared_prefix import Prefix, can_share, find_prefix, rest_states

TRUNK = -1


@dataclass(frozen=True)
class Sample:
    """One dialogue as L tokens. `positions`, `limits` and `branches` say what each token sees."""

    ids: Tensor
    """(L,) token ids."""
    positions: Tensor
    """(L,) position of each token in its own context."""
    branches: Tensor
    """(L,) TRUNK, or the number of the branch."""
    limits: Tensor
    """(L,) how many trunk positions a token sees."""
    trained: Tensor
    """(T,) indices of the sampled tokens, turn by turn."""
    sources: Tensor
    """(T,) index of the token whose hidden state predicts each of them."""
    turns: Tensor
    """(T,) turn of each, from 0."""
    logprobs: Tensor
    """(T,) log-probs at sampling."""

    def __len__(self) -> int:
        return len(self.ids)


def from_dialogue(dialogue: Dialogue) -> Sample:
    """The sample of a dialogue whose replies a local model or a token server sampled."""
    return from_records([turn.tokens for turn in dialogue.turns if turn.tokens is not None])


def from_records(records: Sequence[TokenRecord]) -> Sample:
    """The sample of the replies of one dialogue, in order."""
    context = records[-1].context_ids
    starts = [len(record.prompt_ids) - record.lead for record in records]
    # The last reply is in no context, and with thinking no reply is part of a context as it was sampled.
    inline = all(
        not record.lead and context[start : start + len(record.token_ids)] == record.token_ids
        for record, start in zip(records[:-1], starts, strict=False)
    )
    ids = list(context)
    positions = list(range(len(ids)))
    branches = [TRUNK] * len(ids)
    limits = [position + 1 for position in positions]
    trained: list[int] = []
    sources: list[int] = []
    turns: list[int] = []
    for turn, (record, start) in enumerate(zip(records, starts, strict=True)):
        if inline and record is not records[-1]:
            first = start
        else:
            branch = record.prompt_ids[start:] + record.token_ids
            first = len(ids) + record.lead
            ids += branch
            positions += range(start, start + len(branch))
            branches += [turn] * len(branch)
            limits += [start] * len(branch)
        trained += range(first, first + len(record.token_ids))
        sources += [first - 1 if record.lead else start - 1, *range(first, first + len(record.token_ids) - 1)]
        turns += [turn] * len(record.token_ids)
    logprobs = [logprob for record in records for logprob in record.logprobs]
    # NumPy reads lists several times faster than torch does.
    tokens = torch.from_numpy(np.array((ids, positions, branches, limits)))
    sampled = torch.from_numpy(np.array((trained, sources, turns)))
    return Sample(*tokens, *sampled, torch.tensor(logprobs))  # type: ignore[call-arg]  # not counted by mypy


@dataclass(frozen=True)
class Batch:
    """B samples, padded on the right to L tokens. N trained tokens in all, sample by sample."""

    ids: Tensor
    """(B, L)"""
    positions: Tensor
    """(B, L)"""
    mask: Tensor | None
    """(B, 1, L, L) what each token sees; None where plain causal attention says the same."""
    rows: Tensor
    """(N,) sample of each trained token."""
    sources: Tensor
    """(N,) index of the hidden state that predicts it."""
    targets: Tensor
    """(N,) its id."""
    prefix: Prefix | None
    """What the samples begin with, where it is worth computing once; all `sources` lie behind it."""


def collate(samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
    """Pad samples to one batch."""

    def pad(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value).to(device)

    ids = pad([s.ids for s in samples], 0)
    positions = pad([s.positions for s in samples], 0)
    mask, prefix = None, None
    # One branch at the very end is plain causal attention; right padding is never seen in it.
    if any(map(_is_tree, samples)):
        branches = pad([s.branches for s in samples], TRUNK)
        limits = pad([s.limits for s in samples], 1)
        own = (branches[:, :, None] == branches[:, None, :]) & (branches[:, :, None] != TRUNK)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        trunk = (branches[:, None, :] == TRUNK) & (positions[:, None, :] < limits[:, :, None])
        mask = ((trunk | own) & causal)[:, None]
    else:
        # Padding counts on: where positions jump back, the model sees packed sequences and makes a mask for them.
        positions = torch.arange(ids.shape[1], device=device).expand(ids.shape)
        prefix = find_prefix([opening(s) for s in samples], ids.numel(), device)
    return Batch(
        ids=ids,
        positions=positions,
        mask=mask,
        rows=torch.cat([torch.full_like(s.trained, i) for i, s in enumerate(samples)]).to(device),
        sources=torch.cat([s.sources for s in samples]).to(device),
        targets=torch.cat([s.ids[s.trained] for s in samples]).to(device),
        prefix=prefix,
    )


def opening(sample: Sample) -> list[int]:
    """What stands before the first token that predicts a trained one."""
    ids: list[int] = sample.ids[: int(sample.sources[0])].tolist()
    return ids


def _is_tree(sample: Sample) -> bool:
    """Whether some token does not see all before it."""
    inside = sample.branches != TRUNK
    return bool(
        (sample.branches[inside] != sample.branches[-1]).any() or (sample.limits[inside] != (~inside).sum()).any()
    )


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(N, hidden) hidden states that predict the trained tokens; logits are made of nothing else."""
    if batch.prefix is not None and can_share(model, batch.ids.shape[1]):
        states = rest_states(model, batch.prefix, batch.ids)
        return states[batch.rows, batch.sources - batch.prefix.ids.shape[1]]
    mask = None if batch.mask is None else attention_mask(model, batch.mask[:, 0], batch.positions, batch.positions)
    output = model.get_decoder()(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=mask, use_cache=False
    )
    return output.last_hidden_state[batch.rows, batch.sources]


def micro_batches(samples: Sequence[Sample], tokens: int) -> Iterator[list[int]]:
    """Indices of samples in groups of at most `tokens` padded tokens (a longer sample goes alone), longest first.

    Among those of one length, who begins alike stands together: a batch computes that once.
    """
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i]), opening(samples[i])))
    group: list[int] = []
    for i in order:
        if group and len(samples[group[0]]) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
