"""Samples and batches: dialogues as token ids for a forward pass, exactly as they were sampled.

Without thinking, a dialogue is one sequence. With thinking, each reply was sampled in a context of its own, because the
context holds the earlier replies without their thoughts. These contexts are almost the same, so a dialogue is packed
into one tree: its trunk is the context, and each reply with its thoughts is a branch that attends to the trunk up to
the point where it was sampled, and to itself. The results are those of separate sequences, for about a third of their
tokens.

Batches also share prefixes: the rollouts of a profile begin with the same opening, and all dialogues with the same
system prompt. `find_prefix` decides how much of that is worth computing once; `forward.py` does so ("Prefix Grouper",
arXiv 2506.05433).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rlver.core.dialogue import Dialogue, TokenRecord
from rlver.inference.encoding import common_prefix

TRUNK = -1
"""The branch number of tokens in the trunk."""

_MIN_SAVING = 0.05
"""Smallest share of a batch's tokens that sharing a prefix must save, because a second forward pass costs time, too."""


@dataclass(frozen=True)
class Sample:
    """One dialogue as L tokens, T of which were sampled. `positions`, `limits` and `branches` define attention."""

    ids: Tensor
    """(L,) token ids."""
    positions: Tensor
    """(L,) position of each token in its own context."""
    branches: Tensor
    """(L,) TRUNK, or the number of the branch."""
    limits: Tensor
    """(L,) number of trunk positions that each token attends to."""
    trained: Tensor
    """(T,) indices of the sampled tokens, turn by turn."""
    sources: Tensor
    """(T,) index of the token whose hidden state predicts each of them."""
    turns: Tensor
    """(T,) turn of each, from 0."""
    logprobs: Tensor
    """(T,) log-probabilities as the sampler reported them."""

    def __len__(self) -> int:
        return len(self.ids)


def from_dialogue(dialogue: Dialogue) -> Sample:
    """The sample of a dialogue whose replies a local model or a token server sampled."""
    return from_records([turn.tokens for turn in dialogue.turns if turn.tokens is not None])


def from_records(records: Sequence[TokenRecord]) -> Sample:
    """The sample of the replies of one dialogue, in order.

    The trunk is the context of the last reply. Earlier replies lie in the trunk if it holds exactly their ids. If a
    single one does not, as with thinking, all replies become branches. The last reply always is one.

    Raises:
        ValueError: the context of a reply does not continue the context of the reply before it.
    """
    trunk = records[-1].context_ids
    starts = [len(record.prompt_ids) - record.lead for record in records]
    for turn, (record, start) in enumerate(zip(records, starts, strict=True), 1):
        if trunk[:start] != record.context_ids:
            raise ValueError(f"turn {turn}: its context is not the beginning of the last reply's context")
    in_trunk = all(
        not record.lead and trunk[start : start + len(record.token_ids)] == record.token_ids
        for record, start in zip(records[:-1], starts, strict=False)
    )
    ids = list(trunk)
    positions = list(range(len(ids)))
    branches = [TRUNK] * len(ids)
    limits = [position + 1 for position in positions]
    trained: list[int] = []
    sources: list[int] = []
    turns: list[int] = []
    for turn, (record, start) in enumerate(zip(records, starts, strict=True)):
        if in_trunk and record is not records[-1]:
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
    return Sample(*tokens, *sampled, torch.tensor(logprobs))  # type: ignore[call-arg]  # mypy cannot count the rows


@dataclass(frozen=True)
class Prefix:
    """P tokens with which each of B rows begins; G of these beginnings differ."""

    ids: Tensor
    """(G, P) the different beginnings."""
    owners: Tensor
    """(B,) the beginning of each row."""


@dataclass(frozen=True)
class Batch:
    """B samples, padded on the right to L tokens, with N trained tokens in all, sample by sample."""

    ids: Tensor
    """(B, L) token ids."""
    positions: Tensor
    """(B, L) position of each token in its own context."""
    mask: Tensor | None
    """(B, 1, L, L) what each token attends to; None for plain causal attention."""
    rows: Tensor
    """(N,) sample of each trained token."""
    sources: Tensor
    """(N,) index of the hidden state that predicts it."""
    targets: Tensor
    """(N,) its id."""
    prefix: Prefix | None
    """The prefixes that are worth computing once; all `sources` lie behind them."""


def collate(samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
    """Pad samples to one batch on a device."""

    def pad(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value).to(device)

    ids = pad([s.ids for s in samples], 0)
    positions = pad([s.positions for s in samples], 0)
    mask, prefix = None, None
    # A single branch at the very end is plain causal attention, which never sees the padding on the right.
    if any(map(_needs_mask, samples)):
        branches = pad([s.branches for s in samples], TRUNK)
        limits = pad([s.limits for s in samples], 1)
        same_branch = (branches[:, :, None] == branches[:, None, :]) & (branches[:, :, None] != TRUNK)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        trunk = (branches[:, None, :] == TRUNK) & (positions[:, None, :] < limits[:, :, None])
        mask = ((trunk | same_branch) & causal)[:, None]
    else:
        # Positions of the padding go on rising: `transformers` takes a drop for packed sequences and adds a mask.
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


def micro_batches(samples: Sequence[Sample], max_tokens: int) -> Iterator[list[int]]:
    """Indices of samples, longest first, in groups of at most `max_tokens` tokens with padding.

    A longer sample forms a group of its own. Samples of the same length with the same opening stand next to each
    other, so that their batch computes the opening once.
    """
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i]), opening(samples[i])))
    group: list[int] = []
    for i in order:
        if group and len(samples[group[0]]) * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def minibatches(count: int, epochs: int, parts: int, seed: int) -> Iterator[list[int]]:
    """Indices of the dialogues of each update: `epochs` passes over all, each shuffled and cut into `parts`."""
    rng = random.Random(seed)
    for _ in range(epochs):
        order = rng.sample(range(count), count)
        size = -(-count // parts)
        for start in range(0, count, size):
            yield order[start : start + size]


def opening(sample: Sample) -> list[int]:
    """The ids before the first token whose hidden state predicts a trained one."""
    ids: list[int] = sample.ids[: int(sample.sources[0])].tolist()
    return ids


def find_prefix(openings: Sequence[list[int]], tokens: int, device: torch.device | str = "cpu") -> Prefix | None:
    """The prefixes of the length that saves most tokens, or None if they save too little.

    Args:
        openings: for each row, the ids that it may share.
        tokens: number of tokens of the whole batch, padding included.
    """
    shortest = min(map(len, openings))
    rows = [tuple(row[:shortest]) for row in openings]
    depths = [len(common_prefix(neighbours)) for neighbours in pairwise(sorted(rows))]
    # In sorted order, a row that shares at least `depth` ids with the row before it needs no prefix of its own.
    saved = {depth: depth * sum(common >= depth for common in depths) for depth in depths}
    depth = max(saved, key=saved.__getitem__, default=0)
    if not depth or saved[depth] < _MIN_SAVING * tokens:
        return None
    numbers = {prefix: number for number, prefix in enumerate(dict.fromkeys(row[:depth] for row in rows))}
    owners = [numbers[row[:depth]] for row in rows]
    return Prefix(torch.tensor(list(numbers), device=device), torch.tensor(owners, device=device))


def _needs_mask(sample: Sample) -> bool:
    """Whether some token does not attend to all tokens before it."""
    in_branch = sample.branches != TRUNK
    return bool(
        (sample.branches[in_branch] != sample.branches[-1]).any()
        or (sample.limits[in_branch] != (~in_branch).sum()).any()
    )
