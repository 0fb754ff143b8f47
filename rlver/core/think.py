"""Think-then-say: `<think>plan</think>reply`. The user sees the reply alone; a broken format earns nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_FORMAT = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<reply>.*)", re.DOTALL)


class Said(NamedTuple):
    """What a policy wrote, taken apart."""

    thought: str
    reply: str


def split(raw: str, think: bool) -> Said | None:
    """Take a policy's raw text apart; None if it breaks the format.

    With `think`, the text is exactly one non-empty `<think>...</think>` block at the start and a non-empty
    reply after it. Without, the whole text is the reply, and a thinking tag in it breaks the format: what
    a user would see must never contain one.
    """
    if not think:
        return None if OPEN in raw or CLOSE in raw else Said("", raw.strip())
    match = _FORMAT.fullmatch(raw)
    if match is None:
        return None
    thought, reply = match["thought"].strip(), match["reply"].strip()
    if not thought or not reply or OPEN in thought or OPEN in reply or CLOSE in reply:
        return None
    return Said(thought, reply)
