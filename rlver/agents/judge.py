"""The embedded agent's emotion step: named cues in, points out, one reason a cue, nothing hidden.

The points are set by hand from what recorded dialogues show (which acts suit which intention, that repetition
and manuals annoy, that moods are sticky); the shape is additive so that every point of a score can be explained.
"""

from __future__ import annotations

from rlver.agents.acts import NEED_ACTS
from rlver.agents.base import UserType
from rlver.agents.cues import Cues, need_acts
from rlver.core.dialogue import Dialogue, Reason
from rlver.core.emotion import Band, band
from rlver.core.profile import Character, Intention

VERSION = 2
"""Raised whenever the judgement changes; part of the agent's identity."""

STEPS = (-10, -5, 5, 10)
"""The changes that people-like judges give: 99.9 % of the recorded ones."""

# How well an act answers a hidden intention, from -1 (the opposite of what is wanted) to 1 (exactly it).
# What is not listed is OTHERWISE: kind, and beside the point.
OTHERWISE = -0.5
FIT: dict[Intention, dict[str, float]] = {
    Intention.ABSOLVE: {
        "absolve": 1, "empathise": 0.3, "praise": 0.3, "listen": 0.1, "motives": 0, "weigh": -1, "reflect": -1,
        "comfort": 0.1, "disclose": 0.1, "refer": -1,
    },
    Intention.REFLECT: {
        "reflect": 1, "weigh": 0.4, "motives": 0.1, "empathise": -0.1, "praise": 0, "listen": -0.3, "absolve": -0.6,
        "advise": -0.3, "question": 0,
    },
    Intention.WEIGH: {
        "weigh": 1, "motives": 0.4, "reflect": 0.3, "empathise": -0.4, "advise": -0.3, "absolve": -0.8,
        "praise": -0.4, "listen": -0.4, "comfort": -0.6,
    },
    Intention.EMPATHISE: {
        "empathise": 1, "listen": 0.4, "absolve": 0.2, "praise": 0.1, "disclose": 0.2, "comfort": -0.2,
        "restate": 0, "advise": -0.8, "weigh": -0.8,
    },
    Intention.LISTEN: {
        "listen": 1, "empathise": 0.4, "absolve": 0.1, "praise": -0.1, "question": 0.1, "restate": 0.1,
        "advise": -1, "weigh": -0.8, "reflect": -0.6, "refer": -1,
    },
    Intention.MOTIVES: {
        "motives": 1, "weigh": 0.4, "reflect": -0.1, "empathise": -0.4, "absolve": -0.3, "advise": -0.4,
        "listen": -0.4,
    },
    Intention.ADVISE: {
        "advise": 1, "weigh": 0.2, "reflect": 0.1, "motives": 0, "question": 0, "refer": -0.2, "empathise": -0.4,
        "praise": -0.3, "absolve": -0.4, "comfort": -0.6,
    },
    Intention.PRAISE: {
        "praise": 1, "absolve": 0.4, "empathise": 0.2, "listen": 0, "advise": -0.6, "weigh": -0.7,
    },
}  # fmt: skip
SUITS_FROM = 0.4
"""An act suits an intention if its fit is at least this."""

_MEETS_FROM = 0.7
"""An act meets the need if its fit is above this: half of what one wants is pleasant, but one goes on waiting."""

# Acts that do a receptive user some good whatever the need: their misfit weighs less (RLVER, section 4.3).
_WARM_ACTS = ("empathise", "listen", "praise", "absolve", "comfort")


def fit(act: str, intention: Intention) -> float:
    """How well an act answers an intention, in [-1, 1]; 0 for acts that neither help nor harm by themselves."""
    known = FIT[intention].get(act)
    if known is not None:
        return known
    return 0.0 if act in ("question", "restate", "disclose") else OTHERWISE


def suits(act: str, intention: Intention) -> bool:
    """Whether an act is one that this user came for."""
    return fit(act, intention) >= SUITS_FROM


def judge(cues: Cues, dialogue: Dialogue, user: UserType) -> tuple[int, list[Reason]]:
    """The change of emotion for the last reply of a dialogue and the reasons for it, the weightiest first.

    The points of the reasons add up exactly to the change; the reason "rounding" leads from their sum to one of
    the four steps that people-like judges use.
    """
    intention, persona = dialogue.profile.need, dialogue.profile.persona
    vanilla = user == "vanilla"
    points: dict[str, float] = {}

    def add(cue: str, value: float) -> None:
        if value:
            points[cue] = points.get(cue, 0.0) + value

    if cues.length == 0:
        add("too_short", -10)
        return _round(points)
    if cues.wrong_language:
        add("language", -12)
        return _round(points)

    # 1. Does it do what I came for?
    values = [fit(act, intention) for act in cues.acts]
    if vanilla:
        values = [0.75 * v if v < 0 and act in _WARM_ACTS else v for v, act in zip(values, cues.acts, strict=True)]
    best, worst = max(values, default=0.0), min(values, default=0.0)
    answered = best >= SUITS_FROM
    met = best > _MEETS_FROM
    if best > 0:
        add("fit" if met else "partial", 6.5 * best)
    if not met:
        add("waiting", -1.2 * min(3, max(0, _waited(dialogue) - 1)))
    if worst < 0:
        add("misfit", (3.0 if answered else 6.0) * worst)
    if not any(act in NEED_ACTS for act in cues.acts):
        add("generic", -2.0)
    spread = 3 if cues.length >= 40 else 2
    add("scattered", -2.5 * max(0, len(need_acts(cues)) - spread))

    # 2. Does it see my story? That counts for less if the reply misses the need, least for a guarded user.
    if cues.new_facts:
        weight = 1.0 if answered else 0.6 if vanilla else 0.4
        add("specific", weight * (2.5 if cues.new_facts == 1 else 3.5))
    elif not cues.old_facts:
        add("generic", -2.0)
    add("generic", -1.0 * min(2, cues.generic))

    # 3. How is it said?
    add("repeated", -10.0 * max(0.0, cues.repeated - 0.1))
    add("parroted", -5.0 * cues.parroted)
    add("lecture", (-1.5 if intention is Intention.ADVISE else -4.0) * cues.lecture)
    add("too_short", -3.0 * cues.short)
    add("too_long", -min(10.0, 4.0 * cues.long))
    add("cold", -6.0 * min(1, cues.cold))
    add("warm", 0.5 * min(2, cues.warm))
    add("foreign", -5.0 * min(2, cues.foreign))
    add("garbled", -min(10.0, 4.0 * cues.garbled) - 4.0 * min(2, cues.doubled) - 4.0 * cues.unfinished)
    add("unsafe", -12.0 * min(1, cues.unsafe))
    patience = 1 if persona.character is Character.AVOIDANT else 2
    add("interrogation", -1.5 * max(0, min(4, cues.questions) - patience))

    # 4. Who am I, and how do I feel just now? Moods are sticky.
    if persona.character is Character.NEGATIVE:
        add("persona", -0.5 - 1.0 * ("comfort" in cues.acts))
    elif persona.character is Character.PASSIVE:
        add("persona", 0.5 * ("listen" in cues.acts or "empathise" in cues.acts))
    last = dialogue.turns[-2].reaction if len(dialogue.turns) > 1 else None
    if last is not None:
        add("momentum", 0.8 if last.change > 0 else -0.8)
    add("mood", {Band.A: 0.7, Band.C: -0.7}.get(band(dialogue.score), 0.0))
    add("guarded", 0.0 if vanilla else -1.0)
    return _round(points)


def _waited(dialogue: Dialogue) -> int:
    """How many replies in a row, before the last one, have not met the need."""
    waited = 0
    for turn in reversed(dialogue.turns[:-1]):
        if turn.reaction is None or any(reason.cue == "fit" for reason in turn.reaction.reasons):
            break
        waited += 1
    return waited


def _round(points: dict[str, float]) -> tuple[int, list[Reason]]:
    total = sum(points.values())
    change = 10 if total > 7.5 else 5 if total > 0 else -5 if total > -7.5 else -10
    reasons = [Reason(cue=cue, points=round(value, 2)) for cue, value in points.items()]
    reasons.sort(key=lambda reason: -abs(reason.points))
    rest = round(change - sum(reason.points for reason in reasons), 2)
    return change, [*reasons, *([Reason(cue="rounding", points=rest)] if rest else [])]
