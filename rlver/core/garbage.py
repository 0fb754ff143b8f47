"""When to look for garbage: seldom, while many dialogues are led."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_SELDOM = 50_000
"""New objects between two collections; Python's default of 700 comes with every other reaction or call."""


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Look for cyclic garbage less often, and not among what is there already.

    Every reaction and every call makes many objects, and the collector would walk over stories, lexicons and all that
    was ever imported to look for garbage among them: a tenth to a quarter of the CPU of both.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
