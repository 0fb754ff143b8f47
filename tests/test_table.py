"""Tables in terminals and pipes: names whole and on one line, numbers aligned, long prose cropped."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from rlver.text.hanging import Hanging
from rlver.text.table import Column, Table

NAME = "en-benchmark-2507-0000-food-bank-roster-empathise"


def printed(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def people() -> Table:
    table = Table(Column("id", "name"), Column("title", "text"), Column("n"), title="People", caption="n: how many")
    table.add(NAME, "Off the roster, again and again and again", "7")
    table.add("b", "Short", "1234")
    return table


def test_a_wide_table_is_a_line_per_row() -> None:
    title, head, rule, first, second, caption = printed(people(), 500)
    assert (title, caption) == ("People", "n: how many")
    assert head.split() == ["id", "title", "n"] and rule == "─" * len(head)
    assert first == f"{NAME}  Off the roster, again and again and again     7"
    assert second.index("Short") == first.index("Off") and second.endswith("  1234") and len(second) == len(first)


def test_prose_is_cropped_before_a_name() -> None:
    lines = printed(people(), 70)
    assert lines[3].startswith(f"{NAME} Off the ro") and "…" in lines[3] and lines[3].endswith("   7")
    assert all(len(line) <= 70 for line in lines)


@pytest.mark.parametrize("width", [20, 40, 55])
def test_a_name_without_room_stands_above_its_row(width: int) -> None:
    _, above, head, _, name, row, other, *_ = printed(people(), width)
    assert (above, name, other) == ("id", NAME, "b")
    assert head.startswith("  title") and row.startswith("  Off the ro") and row.endswith("   7")
    assert len(row) <= max(width, 20)


def test_cells_are_one_line_without_control_characters_and_may_be_chinese() -> None:
    table = Table(Column("a", "name"), Column("b"))
    table.add("one\ntwo\x1b[2J", "1")
    table.add("别难过", Text("2", style="bold"))
    *_, first, second = printed(table, 80)
    assert first == "one two\ufffd[2J  1" and second == "别难过       2"  # a character is two columns wide
    with pytest.raises(ValueError, match="3 cells"):
        table.add("a", "b", "c")


def test_wrapped_lines_go_on_with_an_indent() -> None:
    console = Console(file=io.StringIO(), width=24, highlight=False)
    console.print(Hanging(Text("  40     User: I did not sleep at all last night.\n\nEnd", style="bold"), 9))
    assert isinstance(console.file, io.StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "  40     User: I did not",
        "         sleep at all",
        "         last night.",
        "",
        "End",
    ]


def test_chinese_is_wrapped_at_any_character() -> None:
    console = Console(file=io.StringIO(), width=24, highlight=False)
    console.print(Hanging(Text("  40     User: 我昨天把家里的钥匙弄丢了。"), 9))
    assert isinstance(console.file, io.StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "  40     User: 我昨天把",
        "         家里的钥匙弄丢",
        "         了。",
    ]


def test_a_table_without_headings_has_no_rule() -> None:
    table = Table(Column("", "name"), Column(""))
    table.add("x", "1")
    assert printed(table, 80) == ["x  1"]
