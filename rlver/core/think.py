"""The think-then-say format: `<think>plan</think>reply`. The user sees only the reply; a broken format earns 0."""

from __future__ import annotations

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_FORMAT = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<reply>.*)", re.DOTALL)


class SplitReply(NamedTuple):
    """The parts of a policy's raw text."""

    thought: str
    reply: str


def split(raw: str, think: bool) -> SplitReply | None:
    """Split a policy's raw text into thought and reply; None if it breaks the format.

    With `think`, the text must be one non-empty `<think>...</think>` block followed by a non-empty reply. Without it,
    the whole text is the reply. A thinking tag inside a reply always breaks the format, so that users never see one.
    """
    if not think:
        return None if OPEN in raw or CLOSE in raw else SplitReply("", raw.strip())
    match = _FORMAT.fullmatch(raw)
    if match is None:
        return None
    thought, reply = match["thought"].strip(), match["reply"].strip()
    if not thought or not reply or OPEN in thought or OPEN in reply or CLOSE in reply:
        return None
    return SplitReply(thought, reply)
