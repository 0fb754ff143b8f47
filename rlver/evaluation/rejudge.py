"""Judges recorded replies again, to measure how a judge has drifted or how two judges differ on the same replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlver.core.correlation import spearman
from rlver.core.dialogue import Dialogue, Opening
from rlver.core.emotion import get_preset
from rlver.core.errors import CallFailed, RlverError
from rlver.core.interfaces import User
from rlver.core.profile import Frozen, Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript
from rlver.evaluation.agreement import RESAMPLES
from rlver.evaluation.statistics import percentile_interval
from rlver.rollout import closing, for_each, run
from rlver.users.llm import LlmUser


class Rejudged(Frozen):
    """Two judgements of one reply: the recorded one and a new one."""

    profile: str
    """Id of the profile."""
    policy: str
    """The policy's spec."""
    dialogue: int
    """Index of the transcript."""
    turn: int
    """Index of the reply in its dialogue."""
    stored: float
    """Recorded change of the emotion, in points."""
    now: float | None
    """New change of the emotion, in points; None if the judge gave no usable answer."""


class Drift(Frozen):
    """How new judgements differ from the recorded ones. Both judges read the same dialogue up to each reply."""

    n: int
    """Number of replies with both judgements."""
    failed: int
    """Number of replies without a usable new judgement. All other figures leave them out."""
    difference: float
    """Mean new change minus mean recorded change, in points per reply."""
    ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the difference, clustered by profile."""
    same_direction: float
    """Share of replies whose two changes have the same sign, 0-1."""
    spearman: float
    """Spearman's rank correlation of the two changes, -1 to 1."""
    spearman_ci95: tuple[float, float]
    """95 % bootstrap percentile interval of the rank correlation, clustered by profile."""


def rejudge(
    transcripts: Sequence[Transcript],
    profiles: Mapping[str, Profile],
    user: User,
    seed: int = 0,
    slots: int = 64,
) -> list[Rejudged]:
    """Let a user judge every judged reply of the transcripts again, each in its dialogue as recorded.

    Args:
        profiles: the profiles of the transcripts, by id.
        slots: largest number of replies that are judged at the same time.

    Raises:
        RlverError: a profile is missing.
    """
    missing = next((t.profile for t in transcripts if t.profile not in profiles), None)
    if missing is not None:
        raise RlverError(f"the profile {missing!r} is missing; give the file of the profiles with --profiles.")
    judged_replies = [
        (index, turn)
        for index, transcript in enumerate(transcripts)
        for turn, recorded in enumerate(transcript.turns)
        if recorded.reaction is not None
    ]
    results: dict[tuple[int, int], Rejudged] = {}

    async def judge(reply: tuple[int, int]) -> None:
        index, turn = reply
        transcript = transcripts[index]
        reaction = transcript.turns[turn].reaction
        assert reaction is not None
        dialogue = _dialogue_before_judgement(transcript, profiles[transcript.profile], turn)
        results[reply] = Rejudged(
            profile=transcript.profile,
            policy=transcript.policy,
            dialogue=index,
            turn=turn,
            stored=reaction.change,
            now=await _judge_last_reply(user, dialogue, derive(seed, index)),
        )

    run(closing(for_each(judged_replies, judge, slots), user))
    return [results[reply] for reply in judged_replies]


def drift(judged: Sequence[Rejudged], seed: int = 0) -> Drift:
    """Summarise how the new judgements differ from the recorded ones.

    Args:
        seed: of the bootstrap.

    Raises:
        RlverError: fewer than three replies have a usable new judgement.
    """
    usable = [item for item in judged if item.now is not None]
    if len(usable) < 3:
        raise RlverError(f"only {len(usable)} of {len(judged)} replies could be judged again; at least 3 are needed.")
    changes_I2 = np.array([(item.stored, item.now) for item in usable], dtype=float)
    profiles = dict.fromkeys(item.profile for item in usable)  # a set would be in another order in each process
    rows_by_profile = [np.flatnonzero([item.profile == profile for item in usable]) for profile in profiles]
    rng = np.random.default_rng(seed)
    resamples = [
        changes_I2[np.concatenate([rows_by_profile[i] for i in rng.integers(len(profiles), size=len(profiles))])]
        for _ in range(RESAMPLES)
    ]
    return Drift(
        n=len(usable),
        failed=len(judged) - len(usable),
        difference=float((changes_I2[:, 1] - changes_I2[:, 0]).mean()),
        ci95=percentile_interval(np.array([(part_I2[:, 1] - part_I2[:, 0]).mean() for part_I2 in resamples])),
        same_direction=float((np.sign(changes_I2[:, 0]) == np.sign(changes_I2[:, 1])).mean()),
        spearman=spearman(changes_I2[:, 0], changes_I2[:, 1]),
        spearman_ci95=percentile_interval(np.array([spearman(part_I2[:, 0], part_I2[:, 1]) for part_I2 in resamples])),
    )


def _dialogue_before_judgement(transcript: Transcript, profile: Profile, turn: int) -> Dialogue:
    """The recorded dialogue at the moment when reply `turn` was to be judged."""
    dialogue = Dialogue(profile, get_preset(transcript.preset), transcript.think)
    facts_in_opening = (i for i, fact in enumerate(profile.story.facts) if fact.say in transcript.opening)
    dialogue.begin(Opening(transcript.opening, next(facts_in_opening, None)))
    for recorded in transcript.turns[:turn]:
        dialogue.turns.append(recorded.model_copy())
        dialogue.emotion = recorded.score
    dialogue.turns.append(transcript.turns[turn].model_copy(update={"reaction": None}))
    return dialogue


async def _judge_last_reply(user: User, dialogue: Dialogue, seed: int) -> float | None:
    """The change of emotion for the last reply, in points; None if the judge gives no usable answer."""
    try:
        if isinstance(user, LlmUser):  # only judges, because its next utterance would cost a second call
            verdict, _ = await user.judge(dialogue, derive(seed, len(dialogue.turns), "judge"))
            return verdict.change
        return (await user.react(dialogue, seed)).change
    except CallFailed:
        return None
