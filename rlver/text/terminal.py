"""Questions to a person at the terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.prompt import Prompt


def ask_line(prompt: str, console: Console) -> str:
    """A line that is not empty, without white space around it.

    Raises:
        KeyboardInterrupt: at Ctrl-C, and at the end of the input (Ctrl-D).
    """
    while True:
        try:
            with _interruptible():
                line = Prompt.ask(prompt, console=console).strip()
        except EOFError:
            raise KeyboardInterrupt from None
        if line:
            return line


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt the prompt at once. An event loop would note it and wait until the line is complete."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
