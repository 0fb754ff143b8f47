"""Draw the two pictures of the README from real data: `python docs/make_pictures.py`.

The data lie in docs/assets/data and were made with seed 0 on two CPU cores:

    rlver train --steps 24 --eval-every 2 --set eval_n=64 --out runs/turn
    rlver train --steps 24 --eval-every 2 --set eval_n=64 --credit terminal --out runs/terminal
    rlver bench --policy runs/turn/base --policy runs/turn/policy --out runs/bench

`learning_curve.jsonl` holds the reward and the evaluations of both runs; step 0 is the same evaluation of the policy
that both started from. `dialogue.json` is one transcript of the benchmark. The pictures bring their own background and
follow the reader's light or dark setting, so they are readable on any page.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
STYLE = f"""
svg {{ --card: #ffffff; --edge: #d8dee4; --ink: #1f2328; --soft: #59636e; --grid: #e6eaef; --teal: #00796b;
  --teal-soft: #d5ece9; --grey-soft: #eff2f5; --orange: #bc4c00; --good: #1a7f37; --bad: #cf222e; }}
@media (prefers-color-scheme: dark) {{ svg {{ --card: #151b23; --edge: #3d444d; --ink: #f0f6fc; --soft: #9198a1;
  --grid: #2a313c; --teal: #4db6ac; --teal-soft: #12383a; --grey-soft: #262c36; --orange: #ffa657; --good: #3fb950;
  --bad: #f85149; }} }}
text {{ font-family: {FONT}; fill: var(--ink); font-size: 15px; }}
.title {{ font-size: 18px; font-weight: 600; }} .soft {{ fill: var(--soft); }} .small {{ font-size: 13px; }}
.middling {{ font-size: 14px; }}
.card {{ fill: var(--card); stroke: var(--edge); }} .grid {{ stroke: var(--grid); }} .teal {{ fill: var(--teal); }}
.orange {{ fill: var(--orange); }} .good {{ fill: var(--good); font-weight: 600; }}
.bad {{ fill: var(--bad); font-weight: 600; }} .user {{ fill: var(--grey-soft); }} .policy {{ fill: var(--teal-soft); }}
.line {{ fill: none; stroke-width: 3; stroke-linejoin: round; stroke-linecap: round; }}
.line.teal {{ stroke: var(--teal); fill: none; }} .line.orange {{ stroke: var(--orange); fill: none; }}
.band {{ opacity: 0.14; }} .dot {{ stroke: var(--card); stroke-width: 2; }}
"""
Point = tuple[float, float]


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words, quote=False)}</text>'


def path(points: Sequence[Point], kind: str, close: bool = False) -> str:
    """A line through points, or the area that they enclose."""
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}{" Z" if close else ""}" class="{kind}"/>'


def picture(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole SVG file: a card with a title that screen readers can read."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img">'
    card = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1:g}" rx="10" class="card"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", card, *parts, "</svg>\n"])


def learning_curve(rows: Sequence[dict[str, Any]]) -> str:
    """The emotion of held-out users over the steps of two runs, with 95 % intervals."""
    width, height, left, right, top, bottom = 900, 380, 64, 160, 88, 52
    last = max(row["step"] for row in rows)

    def at(step: float, score: float) -> Point:
        return left + step / last * (width - left - right), height - bottom - score / 100 * (height - top - bottom)

    parts = [
        text(24, 38, "The policy learns what to say to whom", "title"),
        text(24, 62, "Mean final emotion of 64 users that it never trained with, and 95 % intervals", "soft"),
    ]
    for score in range(0, 101, 25):
        x, y = at(0, score)
        parts.append(path([(x, y), at(last, score)], "grid"))
        parts.append(text(x - 10, y + 5, str(score), "soft small", "end"))
    parts += [text(at(step, 0)[0], height - bottom + 22, str(step), "soft small", "middle") for step in range(0, 25, 4)]
    parts.append(text(at(last / 2, 0)[0], height - 10, "training step", "soft small", "middle"))
    for run, colour, shift in (("terminal reward", "orange", 5), ("reward by turn", "teal", -8)):
        found = [row for row in rows if row["run"] == run and "score" in row]
        area = [at(row["step"], row["high"]) for row in found] + [at(row["step"], row["low"]) for row in found[::-1]]
        line = [at(row["step"], row["score"]) for row in found]
        parts += [path(area, f"band {colour}", close=True), path(line, f"line {colour}")]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="dot {colour}"/>' for x, y in line]
        x, y = line[-1]
        parts.append(text(x + 14, y + 1 + shift, run, colour))
        parts.append(text(x + 14, y + 19 + shift, f"{found[0]['score']:.0f} → {found[-1]['score']:.0f}", "soft small"))
    return picture(width, height, "Emotion of held-out users over the steps of two training runs", parts)


def wrapped(words: str, width: int) -> list[str]:
    """The words in lines of at most `width` characters, all about equally long."""
    lines = textwrap.wrap(words, width)
    while len(closer := textwrap.wrap(words, width - 1)) == len(lines):
        lines, width = closer, width - 1
    return lines


def dialogue(transcript: dict[str, Any], wanted: str, shown: int) -> str:
    """The first turns of a dialogue from top to bottom, with the emotion beside them."""
    width, left, low, high = 900, 206, 34, 164
    turns = transcript["turns"][:shown]
    parts = [
        text(24, 38, "One dialogue, and how it feels", "title"),
        text(24, 62, f"The user hopes for one thing and never says it: {wanted}.", "soft"),
    ]
    for x, kind, who in ((704, "user", "user"), (774, "policy", "trained policy")):
        parts += [
            f'<rect x="{x}" y="27" width="14" height="14" rx="4" class="{kind}"/>',
            text(x + 19, 39, who, "small soft"),
        ]

    def across(emotion: float) -> float:
        return low + emotion / 100 * (high - low)

    def bubble(words: str, kind: str, x: float, y: float) -> float:
        """Draw a bubble; returns how tall it is."""
        lines = wrapped(words, 88)
        wide = 24 + 7.3 * max(map(len, lines))
        tall = 14 + 19 * len(lines)
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{wide:.0f}" height="{tall}" rx="9" class="{kind}"/>')
        parts.extend(text(x + 12, y + 21 + 19 * i, line, "middling") for i, line in enumerate(lines))
        return tall

    y = 96.0
    tall = bubble(transcript["opening"], "user", left, y)
    track = [(across(40), y + tall / 2, 40.0)]
    y += tall + 8
    for turn in turns:
        change, reasons = turn["reaction"]["change"], turn["reaction"]["reasons"]
        tall = bubble(turn["reply"], "policy", left + 36, y)
        track.append((across(turn["score"]), y + tall / 2, turn["score"]))
        named = [f"{r['cue']} {r['points']:+.1f}" for r in reasons if r["cue"] not in STATE][:3]
        y += tall + 17
        parts.append(text(left + 48, y, f"{change:+.0f}".replace("-", "\u2212"), "good" if change > 0 else "bad"))
        parts.append(text(left + 90, y, ", ".join(named).replace("-", "\u2212"), "small soft"))
        y += 11
        y += bubble(turn["reaction"]["utterance"], "user", left, y) + 8
    rest = len(transcript["turns"]) - len(turns)
    parts += [path([(across(at), 106), (across(at), y)], "grid") for at in (0, 50, 100)]
    parts += [text(across(at), 98, str(at), "small soft", "middle") for at in (0, 50, 100)]
    parts.append(path([(x, at) for x, at, _ in track], "line teal"))
    for x, at, emotion in track:
        parts.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="5" class="dot teal"/>')
        parts.append(text(x + 11, at + 5, f"{emotion:.0f}", "small"))
    parts.append(
        text(
            24,
            y + 26,
            "Under each reply: the change of the emotion and the weightiest reasons that lie in it.",
            "soft small",
        )
    )
    if rest:
        parts.append(
            text(24, y + 44, f"{rest} replies later, the dialogue ends at {transcript['score']:.0f}.", "soft small")
        )
    return picture(width, y + 60, "A dialogue between a trained policy and a simulated user", parts)


STATE = ("mood", "momentum", "memory", "turn", "persona", "intention", "rounding")
"""Reasons that lie in the user and the moment, not in the reply."""


def pictures() -> dict[Path, str]:
    """Both pictures, by the file that they go to."""
    lines = (ASSETS / "data" / "learning_curve.jsonl").read_text("utf-8").splitlines()
    transcript = json.loads((ASSETS / "data" / "dialogue.json").read_text("utf-8"))
    return {
        ASSETS / "learning_curve.svg": learning_curve([json.loads(line) for line in lines]),
        ASSETS / "dialogue.svg": dialogue(transcript, "to hear that it was not their fault", 6),
    }


if __name__ == "__main__":
    for file, content in pictures().items():
        file.write_text(content, encoding="utf-8")
        print(file, file=sys.stderr)
