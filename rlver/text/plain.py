"""Text that is safe to print: a model's output must not control the terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text with every control character except line breaks replaced."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
