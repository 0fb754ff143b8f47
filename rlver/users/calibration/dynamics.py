"""How emotions move: the share of each step, how sticky moods are, and how they fall by band; ours beside recorded."""

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
from rlver.users.calibration.recorded import Recorded
from rlver.users.embedded.judge import STEPS
from rlver.users.embedded.user import EmbeddedUser

POLICIES = ("generic", "praise", "hedge", "random", "oracle")
"""Scripted policies from worse to better."""
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
"""The recorded dialogues of twelve models with the official users."""
_BANDS = {
    "falls below 25": (0, 25),
    "falls at 25-39": (25, 40),
    "falls at 40-69": (40, 70),
    "falls from 70 on": (70, 101),
}

Path_ = Sequence[tuple[float, float]]
"""(score before, change) of one dialogue's replies."""


def describe(paths: Iterable[Path_], score: float | None = None) -> dict[str, float | None]:
    """The figures of `PUBLISHED` for some dialogues; None where nothing of the kind occurs."""
    moves = [
        (before, change, path[i - 1][1] if i else None) for path in paths for i, (before, change) in enumerate(path)
    ]

    def share(of: Sequence[bool]) -> float | None:
        return round(mean(of), 4) if of else None

    found: dict[str, float | None] = {"score": score}
    for step in sorted(STEPS, reverse=True):
        found[f"share of {step:+d}"] = share([_nearest(change) == step for _, change, _ in moves])
    found["P(up | last up)"] = share([change > 0 for _, change, last in moves if last is not None and last > 0])
    found["P(up | last down)"] = share([change > 0 for _, change, last in moves if last is not None and last <= 0])
    for name, (low, high) in _BANDS.items():
        found[name] = share([change < 0 for before, change, _ in moves if low <= before < high])
    return found


def closed_loop(
    language: Language, user: UserType, recorded: Sequence[Recorded] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The dynamics of talks with each of `POLICIES`, of all together, as published, and of `recorded` if given."""
    profiles = benchmark_profiles(language)
    found: dict[str, dict[str, float | None]] = {"published": dict(PUBLISHED)}
    if recorded:
        found["recorded"] = describe([_path(d.start, [c for _, c, _ in d.turns]) for d in recorded],
                                     round(mean(d.final for d in recorded), 2))  # fmt: skip
    everything: list[Path_] = []
    scores: list[float] = []
    for name in POLICIES:
        agent = EmbeddedUser(language, user, "heldout")
        dialogues = play(profiles, ScriptedPolicy(name, language), agent, PRESETS["sage"], seed=seed)
        paths = [_path(d.preset.start, [t.reaction.change for t in d.turns if t.reaction]) for d in dialogues]
        finals = [100 * d.reward for d in dialogues]
        found[name] = describe(paths, round(mean(finals), 2))
        everything += paths
        scores += finals
    found["all five"] = describe(everything, round(mean(scores), 2))
    return {"language": language, "user": user, "policies": found}


def _path(start: float, changes: Iterable[float]) -> list[tuple[float, float]]:
    path, score = [], start
    for change in changes:
        path.append((score, change))
        score = PRESETS["sage"].apply(score, change)
    return path


def _nearest(change: float) -> int:
    return min(STEPS, key=lambda step: (abs(step - change), step))
