"""Text whose long lines go on with an indent, so that the beginnings of lines stand out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions
from rich.text import Text


class Hanging:
    """A text for a `rich` console. Where a line is wrapped, the rest of it is indented by `indent` columns."""

    def __init__(self, text: Text, indent: int) -> None:
        self.text, self.indent = text, indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """What `rich` calls to print the text."""
        width = max(options.max_width - self.indent, 1)
        for line in self.text.split("\n", allow_blank=True):
            start, rest = line.divide([self.indent]) if len(line) > self.indent else (line, Text())
            first, *others = _wrap(rest, console, width)
            for part in (start + first, *(Text(" " * self.indent) + other for other in others)):
                part.no_wrap, part.overflow = True, "ignore"
                yield part


def _wrap(text: Text, console: Console, width: int) -> list[Text]:
    """The lines of a text, at least one. Text with wide characters, which has few spaces, breaks at any character."""
    if text.cell_len > len(text):
        return list(text.divide(accumulate(map(len, chop_cells(text.plain, width)[:-1]))))
    return list(text.wrap(console, width)) or [text]
