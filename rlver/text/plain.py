"""Text that is safe to print: what a model writes must not steer the terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text with every control character but the line break replaced."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
