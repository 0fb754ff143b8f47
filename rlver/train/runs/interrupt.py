"""Stopping a run on request: Ctrl-C, or SIGTERM from a cluster scheduler."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside the `with` block, the first signal lets the current step finish and be saved; the second stops at once.

    Yields:
        A function that says whether a signal has arrived.
    """
    requested = False

    def handle(*_: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        previous = [(kind, signal.signal(kind, handle)) for kind in _SIGNALS]
    except ValueError:  # not in the main thread, where signals are handled
        yield lambda: False
        return
    try:
        yield lambda: requested
    finally:
        for kind, handler in previous:
            signal.signal(kind, handler)
