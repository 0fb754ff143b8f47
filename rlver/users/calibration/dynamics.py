"""How emotions move: the share of each step, how rises and falls follow each other, and how often each band falls.

The figures of the embedded user stand beside those of recorded dialogues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import play
from rlver.stories import benchmark_profiles
from rlver.users.calibration.recorded import RecordedDialogue
from rlver.users.embedded.judge import STEPS
from rlver.users.embedded.user import EmbeddedUser

POLICIES = ("generic", "praise", "hedge", "random", "oracle")
"""Scripted policies, from the worst to the best."""
PUBLISHED: dict[str, float | None] = {
    "score": None,
    "share of +10": 0.16,
    "share of +5": 0.37,
    "share of -5": 0.34,
    "share of -10": 0.13,
    "P(up | last up)": 0.77,
    "P(up | last down)": 0.25,
    "falls below 25": 0.92,
    "falls at 25-39": 0.72,
    "falls at 40-69": 0.39,
    "falls from 70 on": 0.05,
}
"""Figures of the recorded dialogues of twelve models with the official users."""
_BANDS = {
    "falls below 25": (0, 25),
    "falls at 25-39": (25, 40),
    "falls at 40-69": (40, 70),
    "falls from 70 on": (70, 101),
}

EmotionPath = Sequence[tuple[float, float]]
"""(emotion before, change) of each reply of a dialogue."""


def describe(paths: Iterable[EmotionPath], score: float | None = None) -> dict[str, float | None]:
    """The figures of `PUBLISHED` for some dialogues. A share is None if its condition never occurs.

    Args:
        score: mean final score of the dialogues, which is passed through.
    """
    moves = [
        (before, change, path[i - 1][1] if i else None) for path in paths for i, (before, change) in enumerate(path)
    ]

    def share(events: Sequence[bool]) -> float | None:
        return round(mean(events), 4) if events else None

    figures: dict[str, float | None] = {"score": score}
    for step in sorted(STEPS, reverse=True):
        figures[f"share of {step:+d}"] = share([_nearest(change) == step for _, change, _ in moves])
    figures["P(up | last up)"] = share([change > 0 for _, change, last in moves if last is not None and last > 0])
    figures["P(up | last down)"] = share([change > 0 for _, change, last in moves if last is not None and last <= 0])
    for name, (low, high) in _BANDS.items():
        figures[name] = share([change < 0 for before, change, _ in moves if low <= before < high])
    return figures


def closed_loop(
    language: Language, user_type: UserType, recorded: Sequence[RecordedDialogue] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The dynamics of dialogues with each of `POLICIES` and with all five, beside the published figures.

    Args:
        recorded: recorded dialogues to compare with.
    """
    profiles = benchmark_profiles(language)
    columns: dict[str, dict[str, float | None]] = {"published": dict(PUBLISHED)}
    if recorded:
        paths = [_path(dialogue.start, [change for _, change, _ in dialogue.turns]) for dialogue in recorded]
        columns["recorded"] = describe(paths, round(mean(dialogue.final for dialogue in recorded), 2))
    all_paths: list[EmotionPath] = []
    all_finals: list[float] = []
    user = EmbeddedUser(language, user_type, "heldout")
    for name in POLICIES:
        dialogues = play(profiles, ScriptedPolicy(name, language), user, PRESETS["sage"], seed=seed)
        paths = [_path(d.preset.start, [t.reaction.change for t in d.turns if t.reaction]) for d in dialogues]
        finals = [100 * d.reward for d in dialogues]
        columns[name] = describe(paths, round(mean(finals), 2))
        all_paths += paths
        all_finals += finals
    columns["all five"] = describe(all_paths, round(mean(all_finals), 2))
    return {"language": language, "user": user_type, "policies": columns}


def _path(start: float, changes: Iterable[float]) -> list[tuple[float, float]]:
    """The path of the emotion from a start through some changes, under the preset `sage`."""
    path, emotion = [], start
    for change in changes:
        path.append((emotion, change))
        emotion = PRESETS["sage"].apply(emotion, change)
    return path


def _nearest(change: float) -> int:
    """The step that is nearest to a change, the lower one of two."""
    return min(STEPS, key=lambda step: (abs(step - change), step))
