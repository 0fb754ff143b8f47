"""Tables of plain lines: names are never folded or cropped, long prose is cropped where a terminal is narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from rlver.text.plain import plain

Kind = Literal["name", "number", "text"]

_GAP = "  "
_NARROW_GAP = " "
_SHORTEST_TEXT = 10
"""Characters that a column of prose keeps at least."""


class Column(NamedTuple):
    """A column: its heading, and what stands in it.

    A `name` is an id, a spec or a path, which people copy: it stays whole and on one line. A `number` stays whole, too,
    and is aligned to the right. A `text` is prose, which ends in an ellipsis where there is no room for it.
    """

    heading: str
    kind: Kind = "number"


class Table:
    """A table that a `rich` console prints, one line a row.

    Where the terminal is too narrow for the names and numbers of a row, the name stands on a line of its own above
    them. Print it with `crop=False`, so that a name longer than the terminal is left to the terminal to wrap.

    Args:
        title: stands above the table, and may take several lines.
        caption: stands below it.
    """

    def __init__(self, *columns: Column, title: str = "", caption: str = "") -> None:
        self.columns, self.title, self.caption = columns, title, caption
        self.rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row. Control characters are taken out of strings."""
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {len(cells)} cells does not fit {len(self.columns)} columns")
        self.rows.append([cell if isinstance(cell, Text) else Text(plain(cell.replace("\n", " "))) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """What `rich` calls to print the table."""
        if self.title:
            yield Text(plain(self.title), style="italic", overflow="ignore")
        yield from self._lines(options.max_width)
        if self.caption:
            yield Text(plain(self.caption), style="dim", overflow="ignore")

    def _lines(self, width: int) -> Iterator[Text]:
        columns = list(range(len(self.columns)))
        widths, gap, need = self._fit(columns, width)
        stacked = next((i for i in columns if self.columns[i].kind == "name"), None) if need > width else None
        if stacked is not None:
            columns.remove(stacked)
            widths, gap, _ = self._fit(columns, width - len(_GAP))
        headings = [Text(column.heading, style="bold") for column in self.columns]
        lead = _GAP if stacked is not None else ""
        if any(column.heading for column in self.columns):
            if stacked is not None:
                yield headings[stacked]
            head = self._line(headings, columns, widths, gap, lead)
            yield head
            yield _whole("─" * max(head.cell_len, sum(widths[i] for i in columns) + len(gap) * (len(columns) - 1)))
        for row in self.rows:
            if stacked is not None:
                yield _whole(row[stacked])
            yield self._line(row, columns, widths, gap, lead)

    def _fit(self, columns: Sequence[int], width: int) -> tuple[list[int], str, int]:
        """The width of every column, the gap between columns, and the width that these columns need together.

        Narrows the gap first and then the widest texts, until the columns fit into `width` or no text is left.
        """
        widths = [
            max([cell_len(column.heading), *(row[i].cell_len for row in self.rows)])
            for i, column in enumerate(self.columns)
        ]
        need = sum(widths[i] for i in columns) + len(_GAP) * (len(columns) - 1)
        if need <= width:
            return widths, _GAP, need
        need -= (len(_GAP) - len(_NARROW_GAP)) * (len(columns) - 1)
        texts = [i for i in columns if self.columns[i].kind == "text"]
        while need > width and texts:
            widest = max(texts, key=widths.__getitem__)
            if widths[widest] <= max(_SHORTEST_TEXT, cell_len(self.columns[widest].heading)):
                break
            widths[widest] -= 1
            need -= 1
        return widths, _NARROW_GAP, need

    def _line(self, row: Sequence[Text], columns: Sequence[int], widths: Sequence[int], gap: str, lead: str) -> Text:
        line = Text(lead)
        for place, i in enumerate(columns):
            cell = row[i].copy()
            cell.truncate(widths[i], overflow="ellipsis")
            room = " " * (widths[i] - cell.cell_len)
            right = self.columns[i].kind == "number"
            line.append(gap if place else "").append(room if right else "").append_text(cell)
            line.append("" if right else room)
        line.rstrip()
        return _whole(line)


def _whole(text: Text | str) -> Text:
    """The text as a line that is neither wrapped nor cropped."""
    line = Text(text) if isinstance(text, str) else text.copy()
    line.no_wrap, line.overflow = True, "ignore"
    return line
