"""Encodes the beginning that several conversations share once, and copies its rows of the KV cache.

All dialogues share the system prompt, and the rollouts of a GRPO group share the user's opening too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlver.inference.encoding import common_prefix
from rlver.inference.engines.rows import Conversation
from rlver.inference.sampler import Sampler

_MIN_TOKENS = 16
"""Shortest shared beginning that is worth a copy."""


class NewConversation(NamedTuple):
    """A conversation without tokens in the cache, and its first chunk."""

    conversation: Conversation
    chunk: Sequence[int]


def share_prefixes(sampler: Sampler, new: Sequence[NewConversation], encoded: Conversation | None) -> None:
    """Encode what new conversations have in common. Afterwards their `length` says how far they are encoded.

    The last token of a chunk is never encoded here, because the caller needs its logits in every row.

    Args:
        encoded: a conversation in the cache that may begin like the new ones.
    """
    _copy_common_prefix(sampler, new, encoded)
    _encode_equal_chunks_once(sampler, new)


def _copy_common_prefix(sampler: Sampler, new: Sequence[NewConversation], source: Conversation | None) -> None:
    """Give new conversations the beginning that they share with `source`, or else with each other."""
    if (source is None or not source.length) and len(new) > 1:
        common = common_prefix([chunk[:-1] for _, chunk in new])
        if len(common) >= _MIN_TOKENS:
            source, new = new[0].conversation, new[1:]
            source.prefix, source.length = common, len(common)
            sampler.feed([source.row], [0], [common])
    copies = []
    for conversation, chunk in new:
        common = common_prefix([chunk[:-1], source.prefix[: source.length]]) if source else ()
        if len(common) >= _MIN_TOKENS:
            conversation.length = len(common)
            copies.append(conversation)
        conversation.prefix = chunk
    if source and copies:
        used = max(conversation.length for conversation in copies)
        sampler.cache.copy_rows([source.row] * len(copies), [conversation.row for conversation in copies], used)


def _encode_equal_chunks_once(sampler: Sampler, new: Sequence[NewConversation]) -> None:
    """Encode chunks that are equal up to their last token in one row each, and copy the rows."""
    groups: dict[tuple[int, ...], list[Conversation]] = {}
    for conversation, chunk in new:
        groups.setdefault(tuple(chunk[:-1]), []).append(conversation)
    pending = [chunk[group[0].length :] for chunk, group in groups.items()]
    sizes = [len(group) for group in groups.values()]
    if not any(len(ids) >= _MIN_TOKENS and size > 1 for ids, size in zip(pending, sizes, strict=True)):
        return
    # Groups of one are encoded too. Then all rows lack a single token, and the next pass needs no padding.
    leaders = [(group[0], ids) for group, ids in zip(groups.values(), pending, strict=True) if ids]
    sampler.feed(
        [leader.row for leader, _ in leaders], [leader.length for leader, _ in leaders], [ids for _, ids in leaders]
    )
    for chunk, group in groups.items():
        for conversation in group:
            conversation.length = len(chunk)
    copies = [(group[0].row, conversation.row) for group in groups.values() for conversation in group[1:]]
    sampler.cache.copy_rows([source for source, _ in copies], [target for _, target in copies], max(map(len, groups)))
