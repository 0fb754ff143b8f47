"""Streamed answers: a growing text as deltas, with thinking apart from the reply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rlver.core.think import CLOSE, OPEN


class Delta(NamedTuple):
    """The next part of an answer."""

    text: str
    thinking: bool
    """Whether it belongs to the policy's thoughts."""
    tokens: int
    """Number of tokens sampled so far."""
    finish: str | None
    """Why the answer ends with this delta: "stop" or "length"; None if it goes on."""


class DeltaSplitter:
    """Splits a growing text into deltas.

    Args:
        think: whether the text begins with thoughts in `<think></think>`.
    """

    def __init__(self, think: bool) -> None:
        self._think = think
        self._sent = {True: 0, False: 0}
        """Characters of thoughts (True) and reply (False) that are sent already."""

    def split(self, text: str, tokens: int, finish: str | None = None) -> Iterator[Delta]:
        """The deltas that are not sent yet.

        Args:
            text: everything sampled so far.
            tokens: the number of its tokens.
            finish: why it ends, if it does. Then everything is sent.
        """
        thought, reply = "", text
        if self._think:
            head, closed, tail = text.partition(CLOSE)
            thought, reply = head.replace(OPEN, ""), tail.lstrip()
            if not closed:
                # The end of the text may still become a closing tag.
                thought, reply = (thought if finish else thought[: -len(CLOSE)]), ""
        for part, thinking in ((thought, True), (reply, False)):
            new = part[self._sent[thinking] :]
            if new:
                self._sent[thinking] = len(part)
                yield Delta(new, thinking, tokens, None)
        if finish:
            yield Delta("", False, tokens, finish)
