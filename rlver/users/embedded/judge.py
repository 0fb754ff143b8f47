"""The embedded judge: turns the cues of a reply into points, and the points into a change of emotion.

Every cue is a reason with its points, and the points add up to the change. They are of three kinds:
- Calibrated points are fitted to recorded dialogues that a large model judged (`weights.py`). They cover the user's
  mood and the effect of a reply of usual length.
- Hand-set points judge brief replies. Recorded replies are long and do many things at once: only 1 in 100 is shorter
  than about thirty words. So the recordings do not show the effect of one or two sentences.
- Guards are hand-set points against cheats, which no honest supporter uses and a trained policy soon discovers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlver.core.dialogue import Dialogue, Reason
from rlver.core.interfaces import UserType
from rlver.core.profile import Character, Intention, Language
from rlver.users.embedded.acts import NEED_ACTS, OTHER_ACTS
from rlver.users.embedded.cues import Cues, need_acts
from rlver.users.embedded.weights import Weights, default_weights

VERSION = 5
"""Increased whenever the judgement changes. It is part of the user's identity."""

STEPS = (-10, -5, 5, 10)
"""The possible changes of emotion. They are 99.9 % of the recorded changes."""

# How well an act answers a hidden intention, from -1 (the opposite of the wish) to 1 (exactly the wish).
# An act that is not listed counts as OTHERWISE: kind, but beside the point.
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
"""An act meets the need if its fit is above this. A partial answer is pleasant, but the user keeps waiting."""

# Acts that do a vanilla user some good whatever the need, so their misfit weighs less (RLVER, section 4.3).
_WARM_ACTS = ("empathise", "listen", "praise", "absolve", "comfort")

STATE = ("mood", "momentum", "memory", "turn", "persona", "intention")
"""Cues of the user and the moment. The reply has no influence on them."""

_NO_ACTS = dict.fromkeys((*NEED_ACTS, *OTHER_ACTS), 0.0)
_CHARACTERS = tuple(Character)
# The weights were fitted to Chinese, so counts of English words are converted. In translations, a word corresponds to
# 1.7 characters. A content word mostly has two characters, which form 1.5 character pairs with its neighbours.
_CHARACTERS_PER_WORD: dict[Language, float] = {"en": 1.7, "zh": 1.0}
_PAIRS_PER_WORD: dict[Language, float] = {"en": 1.5, "zh": 1.0}
# Characters. A reply is brief up to the first number, of usual length from the second on, and a mixture in between.
_BRIEF = (40.0, 80.0)


class Observation(NamedTuple):
    """Everything about a reply that the judgement depends on, as the calibration sees it."""

    state: dict[str, float]
    """Values of the cues in `STATE`."""
    reply: dict[str, float]
    """Values of the cues of the reply."""
    usual: float
    """0 for a brief reply, 1 for one of usual length. It multiplies the calibrated points of the reply's cues."""
    fixed: dict[str, float]
    """Hand-set points by cue."""


def fit(act: str, intention: Intention) -> float:
    """How well an act answers an intention, in [-1, 1]. Acts that neither help nor harm by themselves have 0."""
    listed = FIT[intention].get(act)
    if listed is not None:
        return listed
    return 0.0 if act in ("question", "restate", "disclose") else OTHERWISE


def suits(act: str, intention: Intention) -> bool:
    """Whether an act suits a hidden intention: its fit is at least `SUITS_FROM`."""
    return fit(act, intention) >= SUITS_FROM


def meets(act: str, intention: Intention) -> bool:
    """Whether an act fully meets a hidden intention."""
    return fit(act, intention) > _MEETS_FROM


def judge(
    cues: Cues, dialogue: Dialogue, user_type: UserType, weights: Weights | None = None
) -> tuple[int, list[Reason]]:
    """Judge the last reply of a dialogue.

    Args:
        cues: of that reply.
        weights: calibrated points; by default those that ship with the package.

    Returns:
        The change of emotion in points (one of `STEPS`), and the reasons for it, those with most points first. The
        points add up to the change: the reason "rounding" makes up the difference between their sum and the step.
    """
    weights = weights or default_weights()
    observation = observe(cues, dialogue, user_type)
    return _round(points_by_cue(observation, dialogue.profile.need, weights), weights.big_step)


def observe(cues: Cues, dialogue: Dialogue, user_type: UserType) -> Observation:
    """The observation of the last reply of a dialogue."""
    language = dialogue.profile.language
    last = dialogue.turns[-2].reaction if len(dialogue.turns) > 1 else None
    second_last = dialogue.turns[-3].reaction if len(dialogue.turns) > 2 else None
    state = {
        "mood": dialogue.emotion,
        "momentum": last.change if last else 0.0,
        "memory": second_last.change if second_last else 0.0,
        "turn": len(dialogue.turns) - 1,
        "persona": _CHARACTERS.index(dialogue.profile.persona.character),
    }
    characters = cues.length * _CHARACTERS_PER_WORD[language]
    usual = min(1.0, max(0.0, (characters - _BRIEF[0]) / (_BRIEF[1] - _BRIEF[0])))
    reply = {
        **_NO_ACTS,
        **cues.shares,
        "generic": cues.generic,
        "warm": cues.warm,
        "repeated": cues.repeated,
        "alike": cues.alike,
        "same_start": cues.same_start,
        "echo": cues.echo * _PAIRS_PER_WORD[language],
        "maybe": cues.maybe,
        "tips": cues.tips,
        "sounds_like": cues.sounds_like,
        "relative_length": cues.relative_length,
        "emojis": cues.emojis,
    }
    fixed = _guard_points(cues, dialogue, user_type, usual)
    if usual < 1:
        for cue, points in _brief_points(cues, dialogue, user_type).items():
            fixed[cue] = fixed.get(cue, 0.0) + (1 - usual) * points
    return Observation(state, reply, usual, {cue: points for cue, points in fixed.items() if points})


def points_by_cue(observation: Observation, intention: Intention, weights: Weights) -> dict[str, float]:
    """Points by cue, calibrated and hand-set. Their sum is not yet rounded to a step."""
    points = weights.contributions(observation.state, intention)
    points["intention"] = weights.base.get(intention, 0.0)
    if observation.usual > 0:
        points["plain"] = observation.usual * weights.plain.get(intention, 0.0)
        for cue, value in weights.contributions(observation.reply, intention).items():
            if value:
                points[cue] = observation.usual * value
    for cue, value in observation.fixed.items():
        points[cue] = points.get(cue, 0.0) + value
    return points


def _brief_points(cues: Cues, dialogue: Dialogue, user_type: UserType) -> dict[str, float]:
    """Hand-set points of a brief reply."""
    intention, vanilla = dialogue.profile.need, user_type == "vanilla"
    values = [fit(act, intention) for act in cues.acts]
    if vanilla:
        values = [0.75 * v if v < 0 and act in _WARM_ACTS else v for v, act in zip(values, cues.acts, strict=True)]
    best, worst = max(values, default=0.0), min(values, default=0.0)
    answered, met = best >= SUITS_FROM, best > _MEETS_FROM
    # The calibrated points of moods assume much longer replies, so a sentence or two starts with a handicap.
    points = {"brief": -3.8}
    # Does the reply do what the user came for?
    if best > 0:
        points["fit" if met else "partial"] = (6.5 if met else 4.0) * best
    if not met:
        points["waiting"] = -1.2 * min(3, max(0, _waited(dialogue) - 1))
    if worst < 0:
        points["misfit"] = (3.0 if answered else 5.0) * worst
    # Does it take up the user's story? That counts less if it misses the need, least for a challenging user.
    generic = -min(2.0, cues.generic)
    if not any(act in NEED_ACTS for act in cues.acts):
        generic -= 2.0
    if cues.new_facts:
        weight = 1.0 if answered else 0.6 if vanilla else 0.4
        points["specific"] = weight * (2.5 if cues.new_facts == 1 else 3.5)
    points["generic"] = generic
    # Is it well said?
    points["repeated"] = -10.0 * max(0.0, cues.repeated - 0.1)
    points["lecture"] = (-1.5 if intention is Intention.ADVISE else -4.0) * cues.lecture
    points["too_short"] = -3.0 * cues.short
    points["warm"] = 0.5 * min(2, cues.warm)
    points["garbled"] = -4.0 * cues.unfinished
    patience = 1 if dialogue.profile.persona.character is Character.AVOIDANT else 2
    points["interrogation"] = -1.5 * max(0, min(4, cues.questions) - patience)
    points["scattered"] = -2.5 * max(0, len(need_acts(cues)) - (3 if cues.length >= 40 else 2))
    return points


def _guard_points(cues: Cues, dialogue: Dialogue, user_type: UserType, usual: float) -> dict[str, float]:
    """Hand-set points against replies that help nobody, of any length and for both user types."""
    if cues.length == 0:
        return {"too_short": -25.0}  # empty, or punctuation only
    points = {
        "language": -25.0 * cues.wrong_language,
        "unsafe": -12.0 * min(1, cues.unsafe),  # addresses the judge instead of the person
        "cold": -6.0 * min(1.0, 3 * cues.cold / cues.sentences if cues.sentences else 0.0),
        "parroted": -5.0 * cues.parroted,
        "foreign": -5.0 * min(2, cues.foreign),  # another person's story
        # In a long reply, one unusual sentence does not matter. If half of them are unusual, it does.
        "garbled": -min(10.0, 4.0 * (usual * max(0.0, cues.half_garbled - 2.5) + (1 - usual) * cues.garbled))
        - 4.0 * min(2, cues.doubled),
        "repeated": _repetition_points(cues.again, dialogue.emotion, usual),
        "too_long": -min(10.0, 2.0 * max(0.0, cues.long - 3.0)),  # no one reads that much
    }
    # A reply that mentions nothing the user has told could be said to anyone. A run of such replies costs ever more.
    points["generic"] = -2.0 * min(5, cues.impersonal)
    if usual > 0:
        # Only 6 % of the recorded replies have more than 30 % generic sentences.
        points["generic"] -= 16.0 * usual * max(0.0, cues.generic / max(1, cues.sentences) - 0.3)
        # A long reply may be all about the need. Recorded ones are about many things, so the weights do not cover that.
        focus = max((share for act, share in cues.shares.items() if meets(act, dialogue.profile.need)), default=0)
        points["fit"] = 6.0 * usual * max(0.0, focus - 0.4)
        # A cheat performs as many acts at once as fit in.
        surplus = len(need_acts(cues)) - 2 - cues.length * _CHARACTERS_PER_WORD[dialogue.profile.language] / 60
        points["scattered"] = -2.5 * usual * max(0.0, surplus)
    if user_type == "challenging":
        # A challenging user expects more, and does not value kindness that misses the need.
        met = any(meets(act, dialogue.profile.need) for act in cues.acts)
        points["guarded"] = -1.5 if met else -4.0
    return points


def _repetition_points(again: int, emotion: float, usual: float) -> float:
    """Points of a reply that has been given before, from the fourth time on.

    Recorded users were in a low mood already when a long reply was repeated, and the calibrated points of mood and
    momentum cover the effect. A user in a good mood has more to lose, so the points grow with the emotion.
    """
    return -max(0, again - 2) * ((1 - usual) * 3.0 + usual * 8.0 * max(0.0, emotion - 30) / 70)


def _waited(dialogue: Dialogue) -> int:
    """Number of replies in a row, before the last one, that have not met the need."""
    waited = 0
    for turn in reversed(dialogue.turns[:-1]):
        if turn.reaction is None or any(meets(act, dialogue.profile.need) for act in turn.reaction.acts):
            break
        waited += 1
    return waited


def step(total: float, big_step: tuple[float, float]) -> int:
    """The one of `STEPS` that a sum of points becomes. See `Weights.big_step`."""
    low, high = big_step
    return 10 if total >= high else 5 if total > 0 else -5 if total > low else -10


def _round(points: Mapping[str, float], big_step: tuple[float, float]) -> tuple[int, list[Reason]]:
    change = step(sum(points.values()), big_step)
    reasons = [Reason(cue, rounded) for cue, value in points.items() if (rounded := round(value, 2))]
    reasons.sort(key=_size, reverse=True)
    difference = round(change - sum([reason.points for reason in reasons]), 2)
    return change, [*reasons, *([Reason("rounding", difference)] if difference else [])]


def _size(reason: Reason) -> float:
    return abs(reason.points)
