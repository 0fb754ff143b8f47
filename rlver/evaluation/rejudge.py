"""The same transcripts, judged again: has the judge drifted, or do two judges see the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlver.core.dialogue import Dialogue, Opening
from rlver.core.emotion import get_preset
from rlver.core.errors import CallFailed, RlverError
from rlver.core.interfaces import User
from rlver.core.profile import Frozen, Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript
from rlver.evaluation.compare import RESAMPLES, interval, spearman
from rlver.rollout import closing, for_each, run
from rlver.users.llm import LlmUser


class Rejudged(Frozen):
    """A reply that was judged twice."""

    profile: str
    policy: str
    dialogue: int
    """Place of its transcript among those given."""
    turn: int
    stored: float
    """Change of the emotion as recorded, in points."""
    now: float | None
    """Change by the judge of today; None if it gave no usable answer."""


class Drift(Frozen):
    """How the judge of today differs from the recorded one, given the same talk up to each reply."""

    n: int
    """Replies judged."""
    failed: int
    """Replies without a usable verdict, left out."""
    difference: float
    """Mean change now minus mean change then, in points a reply."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of it, over profiles."""
    same_direction: float
    """Share of replies whose change has the same sign, 0-1."""
    spearman: float
    """Rank correlation of the changes."""
    spearman_ci95: tuple[float, float]
    """95 % bootstrap percentile interval of it, over profiles."""


def rejudge(
    transcripts: Sequence[Transcript],
    profiles: Mapping[str, Profile],
    user: User,
    seed: int = 0,
    slots: int = 64,
) -> list[Rejudged]:
    """Let the user judge every judged reply again, each in its dialogue as it was recorded.

    Args:
        slots: replies that are judged at once.

    Raises:
        RlverError: a profile is missing.
    """
    missing = next((t.profile for t in transcripts if t.profile not in profiles), None)
    if missing is not None:
        raise RlverError(f"the profile {missing!r} is missing; give the file of the profiles with --profiles.")
    tasks = [
        (place, turn)
        for place, transcript in enumerate(transcripts)
        for turn, judged in enumerate(transcript.turns)
        if judged.reaction is not None
    ]
    results: dict[tuple[int, int], Rejudged] = {}

    async def judge(task: tuple[int, int]) -> None:
        place, turn = task
        transcript = transcripts[place]
        reaction = transcript.turns[turn].reaction
        assert reaction is not None
        dialogue = _until(transcript, profiles[transcript.profile], turn)
        results[task] = Rejudged(
            profile=transcript.profile,
            policy=transcript.policy,
            dialogue=place,
            turn=turn,
            stored=reaction.change,
            now=await _change(user, dialogue, derive(seed, place)),
        )

    run(closing(for_each(tasks, judge, slots), user))
    return [results[task] for task in tasks]


def drift(judged: Sequence[Rejudged], seed: int = 0) -> Drift:
    """Sum up. Raises RlverError if fewer than three replies have a verdict of today."""
    found = [item for item in judged if item.now is not None]
    if len(found) < 3:
        raise RlverError(f"only {len(found)} of {len(judged)} replies could be judged again; 3 are needed.")
    pairs_I2 = np.array([(item.stored, item.now) for item in found], dtype=float)
    groups = [np.flatnonzero([item.profile == name for item in found]) for name in {item.profile for item in found}]
    rng = np.random.default_rng(seed)
    drawn = [
        pairs_I2[np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])]
        for _ in range(RESAMPLES // 10)
    ]
    return Drift(
        n=len(found),
        failed=len(judged) - len(found),
        difference=float((pairs_I2[:, 1] - pairs_I2[:, 0]).mean()),
        ci95=interval(np.array([(part[:, 1] - part[:, 0]).mean() for part in drawn])),
        same_direction=float((np.sign(pairs_I2[:, 0]) == np.sign(pairs_I2[:, 1])).mean()),
        spearman=spearman(pairs_I2[:, 0], pairs_I2[:, 1]),
        spearman_ci95=interval(np.array([spearman(part[:, 0], part[:, 1]) for part in drawn])),
    )


def _until(transcript: Transcript, profile: Profile, turn: int) -> Dialogue:
    """The dialogue as it stood when reply `turn` was waiting for its verdict."""
    dialogue = Dialogue(profile, get_preset(transcript.preset), transcript.think)
    told = (i for i, fact in enumerate(profile.story.facts) if fact.say in transcript.opening)
    dialogue.begin(Opening(transcript.opening, next(told, None)))
    for number, was in enumerate(transcript.turns[: turn + 1]):
        dialogue.turns.append(was.model_copy(update={"reaction": was.reaction if number < turn else None}))
        if number < turn:
            dialogue.emotion = was.score
    return dialogue


async def _change(user: User, dialogue: Dialogue, seed: int) -> float | None:
    try:
        if isinstance(user, LlmUser):
            verdict, _ = await user.judge(dialogue, derive(seed, len(dialogue.turns), "judge"))
            return verdict.change
        return (await user.react(dialogue, seed)).change
    except CallFailed:
        return None
