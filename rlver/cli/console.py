"""Where commands print: as wide as the terminal, and without a limit where the output goes into a pipe or a file."""

from __future__ import annotations

import os

from rich.console import Console, RenderableType
from rich.text import Text

_UNLIMITED = 10_000
"""Characters of a line for the programs and files that read the output: no table has to be cropped for them."""


def make_console() -> Console:
    """A console on standard output. `COLUMNS` sets its width everywhere, as usual."""
    console = Console(highlight=False, emoji=False)
    if "COLUMNS" not in os.environ and not console.file.isatty():
        console.width = _UNLIMITED
    return console


def show(*renderables: RenderableType) -> None:
    """Print tables, texts and strings. Strings are taken as they are; ids in them are not folded."""
    console = make_console()
    for item in renderables:
        console.print(Text(item, overflow="ignore") if isinstance(item, str) else item, crop=False)
