"""Progress of long work: a bar on a terminal, plain lines in pipes and log files."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_EVERY = 20.0
"""Seconds between lines of quick steps where there is no terminal."""
_FIRST = 3.0
"""Seconds until the first of these lines, so that a log soon tells how long the work takes."""


class Steps:
    """A named piece of work that counts its steps. Use it in a `with` statement.

    Args:
        each: write a line for every step where there is no terminal. Without it, lines of quick steps are spaced.
    """

    def __init__(self, name: str, each: bool = False) -> None:
        self._name, self._each = name, each
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[time_left]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._began = self._next_line = 0.0
        self._first = 0

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done, with a short note."""
        now = time.monotonic()
        if self._task is None:
            self._task = self._bar.add_task(self._name, total=total, note=note, time_left="", completed=done - 1)
            # Preparations, and steps of an earlier run, say nothing about the time that a step takes.
            self._began, self._first, self._next_line = now, done, now + _FIRST
        steps = done - self._first
        time_left = ""
        if steps > 0 and done < total:
            time_left = f"about {_duration((now - self._began) / steps * (total - done))} left"
        self._bar.update(self._task, completed=done, note=note, time_left=time_left)
        if self._console.is_terminal or (not self._each and done < total and now < self._next_line):
            return
        self._next_line = now + _EVERY
        words = ", ".join(part for part in (note, time_left) if part)
        print(f"{self._name} {done}/{total}: {words}".rstrip(": "), file=self._console.file, flush=True)

    def note(self, text: str) -> None:
        """Show on a terminal what happens between two steps. Log files get only the steps."""
        if self._task is not None:
            self._bar.update(self._task, note=text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _duration(seconds: float) -> str:
    """A rough duration in words, for example "40 s", "3 min" or "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
