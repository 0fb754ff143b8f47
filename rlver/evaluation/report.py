"""Results for people: tables of scores, the matrix of acts, and dialogues with the emotion beside every line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from rlver.core.dialogue import Turn
from rlver.core.profile import Intention
from rlver.core.transcript import Transcript
from rlver.evaluation.act_matrix import NONE
from rlver.evaluation.results import PolicyResult
from rlver.text.plain import plain
from rlver.users.embedded.acts import NEED_ACTS


def score_table(results: Sequence[PolicyResult], title: str = "") -> Table:
    """One row per policy."""
    table = _table(title)
    table.caption = "score: 0-100, with its 95 % interval; columns to the right of it: %"
    for column in ("n", "score", "95 %", "success", "failure", "fit", "fluent", "repeated"):
        table.add_column(column, justify="right", no_wrap=True)
    errors = any(result.summary.errors for result in results)
    if errors:
        table.add_column("unscored", justify="right", no_wrap=True)
    for result in results:
        summary = result.summary
        low, high = summary.ci95
        cells = [
            str(summary.n),
            f"{summary.score:.1f}",
            f"{low:.1f}-{high:.1f}",
            _percent(summary.success),
            _percent(summary.failure),
            _percent(result.fit),
            _percent(result.fluent),
            _percent(result.repeated),
        ]
        table.add_row(Text(result.policy), *cells, *([str(summary.errors)] if errors else []))
    return table


def intention_table(results: Sequence[PolicyResult]) -> Table:
    """Mean score per hidden intention, one row per policy."""
    table = _table("Mean score by hidden intention")
    for intention in Intention:
        table.add_column(intention.value, justify="right", no_wrap=True)
    for result in results:
        scores = result.summary.by_intention
        table.add_row(Text(result.policy), *(f"{scores[i]:.0f}" if i in scores else "-" for i in Intention))
    return table


def groups_table(result: PolicyResult) -> Table:
    """Score, success and failure with 95 % intervals, per hidden intention and character type."""
    table = _table(f"By hidden intention and character type, with 95 % intervals: {result.policy}", "group")
    for column in ("n", "score", "95 %", "success %", "95 %", "failure %", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for group, found in (*result.summary.intentions.items(), *result.summary.characters.items()):
        shares = [
            cell
            for share, (low, high) in (
                (found.success, found.success_ci95),
                (found.failure, found.failure_ci95),
            )
            for cell in (_percent(share), f"{_percent(low)}-{_percent(high)}")
        ]
        low, high = found.ci95
        table.add_row(group.value, str(found.n), f"{found.score:.1f}", f"{low:.1f}-{high:.1f}", *shares)
    return table


def matrix_table(result: PolicyResult) -> Table:
    """Acts by hidden intention, in % of the acts of the row; the act that the intention asks for is bold."""
    table = _table(f"What users with each intention (rows) were given, in %: {result.policy}", "wants")
    for act in (*NEED_ACTS, NONE):
        table.add_column(act, justify="right", no_wrap=True)
    for intention in Intention:
        counts = result.acts[intention]
        total = sum(counts.values())
        cells = []
        for act in (*NEED_ACTS, NONE):
            style = "bold green" if act == intention else "" if counts[act] else "dim"
            cells.append(Text(f"{100 * counts[act] / total:.0f}" if total else "-", style=style))
        table.add_row(intention.value, *cells)
    return table


def dialogue_text(opening: str, turns: Sequence[Turn], start: float) -> Text:
    """A dialogue with the user's emotion (and its change) beside each of the user's lines."""
    text = Text()
    _line(text, f"{start:4.0f}      ", "User", opening, "cyan")
    before = start
    for turn in turns:
        if turn.thought:
            _line(text, " " * 10, "(thinks)", turn.thought, "dim")
        if turn.reaction is None:
            _line(text, " " * 10, "Policy", turn.raw, "yellow")
            _line(text, " " * 10, "", "(this reply was not judged)", "red")
            continue
        _line(text, " " * 10, "Policy", turn.reply, "yellow")
        _line(text, f"{turn.score:4.0f} {turn.score - before:+4.0f} ", "User", turn.reaction.utterance, "cyan")
        before = turn.score
    text.rstrip()
    return text


def transcript_text(transcript: Transcript, start: float) -> Text:
    """A transcript with a heading that tells what the user wanted; `start` is the preset's."""
    heading = f'{transcript.profile}: wants "{transcript.intention.meaning}"; {transcript.policy}\n'
    end = f"\nEnd: {transcript.stop.meaning}; final score {transcript.score:.0f}"
    return Text.assemble(
        (plain(heading), "bold"), dialogue_text(transcript.opening, transcript.turns, start), (end, "bold")
    )


def reasons_table(turns: Sequence[Turn]) -> Table:
    """The emotion after each reply, as a curve of bars, with what moved it and what the user thought."""
    table = Table(title="How your replies were taken", title_justify="left", show_lines=True)
    table.add_column("", justify="right")
    table.add_column("your reply", ratio=3)
    table.add_column("emotion", no_wrap=True)
    table.add_column("reasons", ratio=3)
    table.add_column("thought", ratio=2)
    for number, turn in enumerate(turns, 1):
        if turn.reaction is None:
            table.add_row(str(number), Text(plain(turn.raw)), f"{turn.score:.0f}", "not judged", "")
            continue
        bar = Text("█" * round(max(0.0, turn.score) / 10), style="green" if turn.reaction.change > 0 else "red")
        emotion = Text.assemble(f"{turn.reaction.change:+.0f} -> {turn.score:.0f}\n", bar)
        reasons = ", ".join(f"{reason.cue} {reason.points:+g}" for reason in turn.reaction.reasons)
        table.add_row(str(number), Text(plain(turn.reply)), emotion, reasons, Text(plain(turn.reaction.thought)))
    return table


def _table(title: str, first: str = "policy") -> Table:
    """An empty table that is narrow enough for a terminal of 80 columns."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        show_edge=False,
        padding=0,
    )
    table.add_column(first, overflow="fold")
    return table


def _line(text: Text, margin: str, who: str, said: str, style: str) -> None:
    text.append(margin, style="bold")
    text.append(f"{who}: " if who else "", style=f"bold {style}")
    text.append(plain(said) + "\n", style=style if style in ("dim", "red") else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
