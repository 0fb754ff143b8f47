"""Measures both user types as RLVER (arXiv 2507.03112, section 4.3) measures its own users.

Two figures: how often a supporter's reply is welcome, and how clearly a need shows in the user's utterances.
"""

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
from rlver.users.calibration.recorded import RecordedDialogue, replay
from rlver.users.embedded.judge import judge
from rlver.users.embedded.user import EmbeddedUser

PUBLISHED: dict[str, tuple[float, float]] = {"vanilla": (0.524, 0.786), "challenging": (0.331, 0.636)}
"""Strategy acceptance rate and need-expression level of the authors' users."""
SUPPORTERS = ("oracle", "random", "hedge")
"""Policies of the built-in contexts: one always performs the right act, one a random act, one a bit of every act."""

# Points, out of 10, that a judge would give for what an utterance shows: an attitude to the reply, thoughts and
# circumstances, and a hint at the need, which weighs most.
ATTITUDE, THOUGHTS, NEED = 3, 3, 4


def measure_user_types(
    language: Language, recorded: Sequence[RecordedDialogue] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Acceptance rate and need-expression level of both user types, beside the published figures.

    Both user types judge the same replies in the same contexts.

    Args:
        recorded: the contexts and replies; by default dialogues of scripted policies with vanilla users on the built-in
            benchmark.
    """
    profiles = benchmark_profiles(language)
    dialogues_of: dict[str, list[Dialogue]] = {
        user_type: [
            dialogue
            for name in SUPPORTERS
            for dialogue in play(
                profiles, ScriptedPolicy(name, language), EmbeddedUser(language, user_type), PRESETS["sage"], seed=seed
            )
        ]
        for user_type in get_args(UserType)
    }
    contexts = recorded or [_as_recorded(dialogue) for dialogue in dialogues_of["vanilla"]]
    rises: dict[str, list[bool]] = {user_type: [] for user_type in dialogues_of}
    for context in contexts:
        for dialogue, cues, _ in replay(context):
            for user_type in get_args(UserType):
                rises[user_type].append(judge(cues, dialogue, user_type)[0] > 0)
    return {
        "source": "recorded" if recorded else f"scripted supporters: {', '.join(SUPPORTERS)}",
        "replies": len(rises["vanilla"]),
        "users": {
            user_type: {
                "acceptance": mean(rises[user_type]),
                "published_acceptance": PUBLISHED[user_type][0],
                "need_expression": mean(need_expression(dialogue) for dialogue in dialogues) / 10,
                "published_need_expression": PUBLISHED[user_type][1],
            }
            for user_type, dialogues in dialogues_of.items()
        },
    }


def need_expression(dialogue: Dialogue) -> float:
    """How clearly the user's utterances show attitude, thoughts and needs: mean over the utterances, 0-10."""
    hints = read_yaml("rlver.users.embedded", f"data/speech.{dialogue.profile.language}.yaml")["hints"]
    lines = [line for phrasing in hints[dialogue.profile.need].values() for line in phrasing]
    facts = dialogue.profile.story.facts
    persona = dialogue.profile.persona
    utterances = [(dialogue.opening, 0)] + [(t.reaction.utterance, ATTITUDE) for t in dialogue.turns if t.reaction]
    points = []
    for utterance, attitude in utterances:
        thoughts = any(fact.say in utterance for fact in facts) or any(
            word and word in utterance for word in (persona.occupation, *persona.hobbies, *persona.traits)
        )
        need = any(line in utterance for line in lines)
        points.append(attitude + THOUGHTS * thoughts + NEED * need)
    return mean(points)


def _as_recorded(dialogue: Dialogue) -> RecordedDialogue:
    transcript = record(dialogue, policy="scripted", user="vanilla", prompt="", seed=0)
    return RecordedDialogue(
        model="scripted",
        profile=dialogue.profile,
        opening=dialogue.opening,
        start=dialogue.preset.start,
        floor=dialogue.preset.floor,
        turns=tuple((t.reply, t.reaction.change, t.reaction.utterance) for t in dialogue.turns if t.reaction),
        final=transcript.score,
    )
