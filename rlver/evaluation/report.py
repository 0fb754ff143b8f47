"""Results for people: tables of scores, the matrix of acts, and dialogues with the emotion beside every line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from rlver.core.dialogue import Turn
from rlver.core.profile import Intention, Language
from rlver.core.transcript import Transcript
from rlver.evaluation.act_matrix import NONE
from rlver.evaluation.results import PolicyResult
from rlver.text.plain import plain
from rlver.text.table import Column, Table
from rlver.users.embedded.acts import NEED_ACTS
from rlver.users.embedded.explanations import explanation


def score_table(results: Sequence[PolicyResult], title: str = "") -> Table:
    """One row per policy."""
    headings = ["n", "score", "95 %", "success", "failure", "fit", "fluent", "repeated"]
    errors = any(result.summary.errors for result in results)
    if errors:
        headings.append("unscored")
    table = Table(
        Column("policy", "name"),
        *map(Column, headings),
        title=title,
        caption="score: 0-100, with its 95 % interval; columns to the right of it: %",
    )
    for result in results:
        summary = result.summary
        cells = [
            str(summary.n),
            f"{summary.score:.1f}",
            _interval(summary.ci95),
            *map(_percent, (summary.success, summary.failure, result.fit, result.fluent, result.repeated)),
        ]
        table.add(result.policy, *cells, *([str(summary.errors)] if errors else []))
    return table


def intention_table(results: Sequence[PolicyResult]) -> Table:
    """Mean score per hidden intention, one row per policy."""
    table = Table(Column("policy", "name"), *map(Column, Intention), title="Mean score by hidden intention")
    for result in results:
        scores = result.summary.by_intention
        table.add(result.policy, *(f"{scores[i]:.0f}" if i in scores else "-" for i in Intention))
    return table


def groups_table(result: PolicyResult) -> Table:
    """Score, success and failure with 95 % intervals, per hidden intention and character type."""
    headings = ("n", "score", "95 %", "success %", "95 %", "failure %", "95 %")
    title = f"By hidden intention and character type, with 95 % intervals: {result.policy}"
    table = Table(Column("group", "name"), *map(Column, headings), title=title)
    for name, group in (*result.summary.intentions.items(), *result.summary.characters.items()):
        table.add(
            name.value,
            str(group.n),
            f"{group.score:.1f}",
            _interval(group.ci95),
            _percent(group.success),
            "-".join(map(_percent, group.success_ci95)),
            _percent(group.failure),
            "-".join(map(_percent, group.failure_ci95)),
        )
    return table


def matrix_table(result: PolicyResult) -> Table:
    """Acts by hidden intention, in % of the acts of the row; the act that the intention asks for is bold.

    Rows without any reply hold dashes. If the users report no acts, all rows do, and the caption says so.
    """
    acts = (*NEED_ACTS, NONE)
    title = f"Acts given to users with each intention (rows), in %: {result.policy}"
    caption = "" if result.acts else "These users report no acts."
    table = Table(Column("wants", "name"), *map(Column, acts), title=title, caption=caption)
    for intention in Intention:
        counts = result.acts.get(intention, dict.fromkeys(acts, 0))
        total = sum(counts.values())
        cells = []
        for act in acts:
            style = "bold green" if act == intention else "" if counts[act] else "dim"
            cells.append(Text(f"{100 * counts[act] / total:.0f}" if total else "-", style=style))
        table.add(intention.value, *cells)
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


_REASONS = 5
"""Reasons that are shown for a reply: the weightiest ones. The others are added up."""


def reasons_text(turns: Sequence[Turn], start: float, language: Language) -> Text:
    """Each reply with the change of emotion that it caused, the reasons in words, and what the user thought.

    Args:
        start: emotion before the first reply.
        language: of the reasons.
    """
    text = Text()
    before = start
    for number, turn in enumerate(turns, 1):
        text.append(f"{number}. You: ", style="bold").append(plain(turn.reply or turn.raw) + "\n")
        if turn.reaction is None:
            text.append("   This reply was not judged.\n\n", style="red")
            continue
        change = turn.reaction.change
        style = "green" if change > 0 else "red"
        bar = "█" * round(max(0.0, turn.score) / 5)
        text.append(f"   Emotion {before:.0f} -> {turn.score:.0f} ({change:+g})  ", style="bold")
        text.append(bar + "\n", style=style)
        reasons = [(reason.points, explanation(reason.cue, language)) for reason in turn.reaction.reasons]
        others = sum(points for points, _ in reasons[_REASONS:])
        lines = reasons[:_REASONS]
        if reasons[_REASONS:]:
            lines.append((others, "everything else, and rounding to a step of 5 or 10"))
        for points, words in lines:
            text.append(f"   {points:+6.1f}  ", style="green" if points > 0 else "red").append(f"{words}\n")
        if turn.reaction.thought:
            thought = " ".join(plain(turn.reaction.thought).split())
            text.append(f"   The user thinks: {thought}\n", style="dim")
        text.append("\n")
        before = turn.score
    return text


def _line(text: Text, margin: str, speaker: str, words: str, style: str) -> None:
    text.append(margin, style="bold")
    text.append(f"{speaker}: " if speaker else "", style=f"bold {style}")
    text.append(plain(words) + "\n", style=style if style in ("dim", "red") else "")


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.1f}-{high:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
