"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EVERY = 20.0
"""Seconds between lines where there is no terminal."""


class Steps:
    """A named piece of work that counts its steps. Use it in a `with` statement."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._said = self._began = 0.0
        self._first = 0

    def __enter__(self) -> Steps:
        self._bar.start()
        self._said = self._began = time.monotonic()
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done, with a short note."""
        if self._task is None:
            self._task = self._bar.add_task(self._name, total=total, note=note, completed=done - 1)
            self._first = done - 1
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (done == total or now - self._said > _EVERY):
            self._said = now
            left = (now - self._began) * (total - done) / max(1, done - self._first)
            rest = f", {left:.0f} s left" if done < total else ""
            print(f"{self._name}: {done}/{total} {note}{rest}", file=self._console.file, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
