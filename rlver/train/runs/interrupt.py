"""Being asked to stop: by Ctrl-C, or by a cluster that wants its machine back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first signal lets the step in hand be finished and saved; the second stops at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = [(kind, signal.signal(kind, ask)) for kind in _SIGNALS]
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for kind, handler in before:
            signal.signal(kind, handler)
