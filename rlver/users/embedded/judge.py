"""The embedded agent's emotion step: named cues in, points out, one reason a cue, nothing hidden.

Three kinds of points add up to the change:
- calibrated ones, fitted to recorded dialogues judged by a large model (`weights.py`): the mood one is in, and what a
  reply of usual length does;
- hand-set ones for brief replies. Recorded replies are long and do many things at once (only 1 in 100 is shorter than
  about thirty words), so what one or two sentences do for a person is not in them;
- guards: hand-set too, against what no honest supporter does and a policy that is trained soon finds.
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

STATE = ("mood", "momentum", "memory", "turn", "persona", "intention")
"""Cues of the user and the moment, not of the reply."""

_NO_ACTS = dict.fromkeys((*NEED_ACTS, *OTHER_ACTS), 0.0)
_CHARACTERS = tuple(Character)
# What a count in English words is in Chinese characters or pairs of them, in which the weights were fitted: a word
# fills 1.7 characters in translations, and a content word, mostly two characters, gives 1.5 pairs with its neighbours.
_SIZE: dict[Language, float] = {"en": 1.7, "zh": 1.0}
_PAIRS: dict[Language, float] = {"en": 1.5, "zh": 1.0}
# A reply is brief up to the first of these sizes, of usual length from the second on, and a mixture in between.
_BRIEF = (40.0, 80.0)


class Observation(NamedTuple):
    """A judged reply as the calibration sees it."""

    state: dict[str, float]
    """Values of the cues of the moment."""
    reply: dict[str, float]
    """Values of the cues of the reply."""
    usual: float
    """How far the reply is of usual length, 0-1: by this the points of its cues count."""
    fixed: dict[str, float]
    """Hand-set points, by cue."""


def fit(act: str, intention: Intention) -> float:
    """How well an act answers an intention, in [-1, 1]; 0 for acts that neither help nor harm by themselves."""
    known = FIT[intention].get(act)
    if known is not None:
        return known
    return 0.0 if act in ("question", "restate", "disclose") else OTHERWISE


def suits(act: str, intention: Intention) -> bool:
    """Whether an act is one that this user came for."""
    return fit(act, intention) >= SUITS_FROM


def meets(act: str, intention: Intention) -> bool:
    """Whether an act is the very thing that this user came for."""
    return fit(act, intention) > _MEETS_FROM


def judge(cues: Cues, dialogue: Dialogue, user: UserType, weights: Weights | None = None) -> tuple[int, list[Reason]]:
    """The change of emotion for the last reply of a dialogue and the reasons for it, the weightiest first.

    The points of the reasons add up exactly to the change; the reason "rounding" leads from their sum to one of
    the four steps that people-like judges use.
    """
    weights = weights or default_weights()
    return _round(add_up(observe(cues, dialogue, user), dialogue.profile.need, weights), weights.big_step)


def observe(cues: Cues, dialogue: Dialogue, user: UserType) -> Observation:
    """All that the judgement of the last reply rests on."""
    language = dialogue.profile.language
    last = dialogue.turns[-2].reaction if len(dialogue.turns) > 1 else None
    before = dialogue.turns[-3].reaction if len(dialogue.turns) > 2 else None
    state = {
        "mood": dialogue.emotion,
        "momentum": last.change if last else 0.0,
        "memory": before.change if before else 0.0,
        "turn": len(dialogue.turns) - 1,
        "persona": _CHARACTERS.index(dialogue.profile.persona.character),
    }
    size = cues.length * _SIZE[language]
    usual = min(1.0, max(0.0, (size - _BRIEF[0]) / (_BRIEF[1] - _BRIEF[0])))
    reply = {
        **_NO_ACTS,
        **cues.shares,
        "generic": cues.generic,
        "warm": cues.warm,
        "repeated": cues.repeated,
        "alike": cues.alike,
        "same_start": cues.same_start,
        "echo": cues.echo * _PAIRS[language],
        "maybe": cues.maybe,
        "tips": cues.tips,
        "sounds_like": cues.sounds_like,
        "relative_length": cues.relative_length,
        "emojis": cues.emojis,
    }
    fixed = _guards(cues, dialogue, user, usual)
    if usual < 1:
        for cue, points in _brief(cues, dialogue, user).items():
            fixed[cue] = fixed.get(cue, 0.0) + (1 - usual) * points
    return Observation(state, reply, usual, {cue: points for cue, points in fixed.items() if points})


def add_up(seen: Observation, intention: Intention, weights: Weights) -> dict[str, float]:
    """Points by cue, before they are rounded to a step."""
    points = weights.contributions(seen.state, intention)
    points["intention"] = weights.base.get(intention, 0.0)
    if seen.usual > 0:
        points["plain"] = seen.usual * weights.plain.get(intention, 0.0)
        for cue, value in weights.contributions(seen.reply, intention).items():
            if value:
                points[cue] = seen.usual * value
    for cue, value in seen.fixed.items():
        points[cue] = points.get(cue, 0.0) + value
    return points


def _brief(cues: Cues, dialogue: Dialogue, user: UserType) -> dict[str, float]:
    """Hand-set points of a reply of one or two sentences."""
    intention, vanilla = dialogue.profile.need, user == "vanilla"
    values = [fit(act, intention) for act in cues.acts]
    if vanilla:
        values = [0.75 * v if v < 0 and act in _WARM_ACTS else v for v, act in zip(values, cues.acts, strict=True)]
    best, worst = max(values, default=0.0), min(values, default=0.0)
    answered, met = best >= SUITS_FROM, best > _MEETS_FROM
    points = {"brief": -3.8}  # a sentence or two has to earn its welcome: the fitted moods rest on much longer replies
    # Does it do what I came for?
    if best > 0:
        points["fit" if met else "partial"] = (6.5 if met else 4.0) * best
    if not met:
        points["waiting"] = -1.2 * min(3, max(0, _waited(dialogue) - 1))
    if worst < 0:
        points["misfit"] = (3.0 if answered else 5.0) * worst
    # Does it see my story? That counts for less if the reply misses the need, least for a guarded user.
    generic = -min(2.0, cues.generic)
    if not any(act in NEED_ACTS for act in cues.acts):
        generic -= 2.0
    if cues.new_facts:
        weight = 1.0 if answered else 0.6 if vanilla else 0.4
        points["specific"] = weight * (2.5 if cues.new_facts == 1 else 3.5)
    points["generic"] = generic
    # How is it said?
    points["repeated"] = -10.0 * max(0.0, cues.repeated - 0.1)
    points["lecture"] = (-1.5 if intention is Intention.ADVISE else -4.0) * cues.lecture
    points["too_short"] = -3.0 * cues.short
    points["warm"] = 0.5 * min(2, cues.warm)
    points["garbled"] = -4.0 * cues.unfinished
    patience = 1 if dialogue.profile.persona.character is Character.AVOIDANT else 2
    points["interrogation"] = -1.5 * max(0, min(4, cues.questions) - patience)
    points["scattered"] = -2.5 * max(0, len(need_acts(cues)) - (3 if cues.length >= 40 else 2))
    return points


def _guards(cues: Cues, dialogue: Dialogue, user: UserType, usual: float) -> dict[str, float]:
    """Hand-set points against what would be no help at all, however long it is and whoever hears it."""
    if cues.length == 0:
        return {"too_short": -25.0}  # nothing, or signs only
    points = {
        "language": -25.0 * cues.wrong_language,
        "unsafe": -12.0 * min(1, cues.unsafe),  # words for the judge instead of the person
        "cold": -6.0 * min(1.0, 3 * cues.cold / cues.sentences if cues.sentences else 0.0),
        "parroted": -5.0 * cues.parroted,
        "foreign": -5.0 * min(2, cues.foreign),  # another person's story
        # In a long reply one sentence out of the ordinary is nothing; half of them are.
        "garbled": -min(10.0, 4.0 * (usual * max(0.0, cues.half_garbled - 2.5) + (1 - usual) * cues.garbled))
        - 4.0 * min(2, cues.doubled),
        "repeated": _said_again(cues.again, dialogue.emotion, usual),
        "too_long": -min(10.0, 2.0 * max(0.0, cues.long - 3.0)),  # nobody reads that
    }
    # What takes up nothing of what I tell could be said to anyone. Once is human; who goes on so does not listen.
    points["generic"] = -2.0 * min(5, cues.impersonal)
    if usual > 0:
        # Of the recorded replies 6 % have more than three sentences in ten for anyone.
        points["generic"] -= 16.0 * usual * max(0.0, cues.generic / max(1, cues.sentences) - 0.3)
        # A long reply that is all about what I came for; recorded ones are about everything, so their weights miss it.
        focus = max((share for act, share in cues.shares.items() if meets(act, dialogue.profile.need)), default=0)
        points["fit"] = 6.0 * usual * max(0.0, focus - 0.4)
        crowd = len(need_acts(cues)) - 2 - cues.length * _SIZE[dialogue.profile.language] / 60
        points["scattered"] = -2.5 * usual * max(0.0, crowd)  # all acts at once, as many as fit in
    if user == "challenging":
        # Expects more, and takes kindness that misses the need for what it is.
        met = any(meets(act, dialogue.profile.need) for act in cues.acts)
        points["guarded"] = -1.5 if met else -4.0
    return points


def _said_again(again: int, score: float, usual: float) -> float:
    """Points of a reply that was given before, from the fourth time on.

    Recorded users who heard a long reply again were low already, and the weights of mood and momentum tell what it did
    to them. Who is well can be let down: the better the mood, the more.
    """
    return -max(0, again - 2) * ((1 - usual) * 3.0 + usual * 8.0 * max(0.0, score - 30) / 70)


def _waited(dialogue: Dialogue) -> int:
    """How many replies in a row, before the last one, have not met the need."""
    waited = 0
    for turn in reversed(dialogue.turns[:-1]):
        if turn.reaction is None or any(meets(act, dialogue.profile.need) for act in turn.reaction.acts):
            break
        waited += 1
    return waited


def step(total: float, big_step: tuple[float, float]) -> int:
    """The step of emotion that a sum of points amounts to."""
    low, high = big_step
    return 10 if total >= high else 5 if total > 0 else -5 if total > low else -10


def _round(points: Mapping[str, float], big_step: tuple[float, float]) -> tuple[int, list[Reason]]:
    change = step(sum(points.values()), big_step)
    reasons = [Reason(cue, rounded) for cue, value in points.items() if (rounded := round(value, 2))]
    reasons.sort(key=_weight, reverse=True)
    rest = round(change - sum([reason.points for reason in reasons]), 2)
    return change, [*reasons, *([Reason("rounding", rest)] if rest else [])]


def _weight(reason: Reason) -> float:
    return abs(reason.points)
