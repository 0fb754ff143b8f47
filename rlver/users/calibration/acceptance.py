"""The two kinds of user, measured as RLVER (arXiv 2507.03112, section 4.3) measures its own: how often a supporter's
reply is welcome, and how much of a need shows in what the user says."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, get_args

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue
from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.core.transcript import record
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import play
from rlver.stories import benchmark_profiles
from rlver.users.calibration.recorded import Recorded, replay
from rlver.users.embedded.judge import judge
from rlver.users.embedded.user import EmbeddedUser

PUBLISHED: dict[str, tuple[float, float]] = {"vanilla": (0.524, 0.786), "challenging": (0.331, 0.636)}
"""Strategy acceptance rate and need-expression level of the authors' users."""
SUPPORTERS = ("oracle", "random", "hedge")
"""Who answers in the built-in contexts: one who does the right thing, one who does anything, one a bit of all."""

# What shows in an utterance and what a judge would give for it, out of 10: an attitude to the reply, thoughts and
# circumstances, and the need itself, the heaviest, between the lines.
ATTITUDE, THOUGHTS, NEED = 3, 3, 4


def profile_users(language: Language, recorded: Sequence[Recorded] | None = None, seed: int = 0) -> dict[str, Any]:
    """Acceptance rate and need-expression level of both users, beside the published ones.

    Acceptance is measured on the same contexts and replies for both: those of `recorded`, or of talks that scripted
    supporters had with vanilla users over the built-in benchmark.
    """
    profiles = benchmark_profiles(language)
    talks: dict[str, list[Dialogue]] = {
        user: [
            dialogue
            for name in SUPPORTERS
            for dialogue in play(
                profiles, ScriptedPolicy(name, language), EmbeddedUser(language, user), PRESETS["sage"], seed=seed
            )
        ]
        for user in get_args(UserType)
    }
    contexts = recorded or [_as_recorded(dialogue) for dialogue in talks["vanilla"]]
    rises: dict[str, list[bool]] = {user: [] for user in talks}
    for one in contexts:
        for dialogue, cues, _ in replay(one):
            for user in get_args(UserType):
                rises[user].append(judge(cues, dialogue, user)[0] > 0)
    return {
        "source": "recorded" if recorded else f"scripted supporters: {', '.join(SUPPORTERS)}",
        "replies": len(rises["vanilla"]),
        "users": {
            user: {
                "acceptance": mean(rises[user]),
                "published_acceptance": PUBLISHED[user][0],
                "need_expression": mean(need_expression(dialogue) for dialogue in dialogues) / 10,
                "published_need_expression": PUBLISHED[user][1],
            }
            for user, dialogues in talks.items()
        },
    }


def need_expression(dialogue: Dialogue) -> float:
    """How well attitude, thoughts and needs show in what the user says: mean over the utterances, 0-10."""
    hints = read_yaml("rlver.users.embedded", f"data/speech.{dialogue.profile.language}.yaml")["hints"]
    lines = [line for phrasing in hints[dialogue.profile.need].values() for line in phrasing]
    facts = dialogue.profile.story.facts
    persona = dialogue.profile.persona
    shown = [(dialogue.opening, 0)] + [(t.reaction.utterance, ATTITUDE) for t in dialogue.turns if t.reaction]
    points = []
    for utterance, attitude in shown:
        thoughts = any(fact.say in utterance for fact in facts) or any(
            word and word in utterance for word in (persona.occupation, *persona.hobbies, *persona.traits)
        )
        need = any(line in utterance for line in lines)
        points.append(attitude + THOUGHTS * thoughts + NEED * need)
    return mean(points)


def _as_recorded(dialogue: Dialogue) -> Recorded:
    transcript = record(dialogue, policy="scripted", user="vanilla", prompt="", seed=0)
    return Recorded(
        model="scripted",
        profile=dialogue.profile,
        opening=dialogue.opening,
        start=dialogue.preset.start,
        floor=dialogue.preset.floor,
        turns=tuple((t.reply, t.reaction.change, t.reaction.utterance) for t in dialogue.turns if t.reaction),
        final=transcript.score,
    )
