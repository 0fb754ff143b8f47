"""The benchmark: the policy has a dialogue with the user of every profile, once or several times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rlver.core.dialogue import Dialogue
from rlver.core.emotion import Preset
from rlver.core.interfaces import Policy, User
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript, record
from rlver.evaluation.log import DialogueKey, LoggedDialogue, RunLog, profile_hash
from rlver.llm.usage import counting
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import Rollout, closing, for_each, play_dialogue, run
from rlver.users.embedded.user import EmbeddedUser

HUMAN = "human"
"""Spec of a policy, and identity of a user, that a person at the terminal plays."""


class Job(NamedTuple):
    """A dialogue to play."""

    profile: Profile
    repeat: int
    """Number of the repeat, from 0."""
    seed: int
    """Seed of the dialogue. It depends only on the seed of the benchmark, the profile and the repeat."""

    @property
    def key(self) -> DialogueKey:
        """What identifies the dialogue in a log."""
        return self.profile.id, self.repeat


class Pace(NamedTuple):
    """How many dialogues are in progress at the same time, and how long one may take. Scores do not depend on it."""

    slots: int = 64
    """Largest number of dialogues in progress."""
    deadline: float | None = None
    """Seconds after which a dialogue ends as failed; None sets no limit."""


def pace_for(
    policy: Policy, user: User, *, batch: int = 64, concurrency: int = 32, deadline: float | None = 900.0
) -> Pace:
    """The pace that suits a policy and a user.

    Args:
        batch: largest number of dialogues at a time if only local models and rules answer.
        concurrency: largest number of dialogues at a time if an endpoint or a function answers.
        deadline: seconds that a dialogue with an endpoint or a function may take; None sets no limit.
    """
    if HUMAN in (policy.spec, user.identity):
        return Pace(1)
    offline = isinstance(user, EmbeddedUser)
    if getattr(policy, "engine", None) is None:
        return Pace(batch) if offline and isinstance(policy, ScriptedPolicy) else Pace(concurrency, deadline)
    if offline:
        return Pace(batch)
    # A local model serves all dialogues in turn, so that each of them may take longer.
    slots = min(batch, concurrency)
    return Pace(slots, deadline * slots if deadline else None)


def list_jobs(profiles: Sequence[Profile], repeats: int, seed: int) -> list[Job]:
    """The dialogues of a benchmark: all profiles in order, then all profiles again for each further repeat."""
    return [Job(profile, repeat, derive(seed, profile.id, repeat)) for repeat in range(repeats) for profile in profiles]


def run_benchmark(
    profiles: Sequence[Profile],
    policy: Policy,
    user: User,
    preset: Preset,
    seed: int,
    repeats: int = 1,
    pace: Pace | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Transcript]:
    """Play every profile `repeats` times without a log. Returns the transcripts in the order of `list_jobs`.

    Args:
        on_progress: called with (ended dialogues, all dialogues) whenever a dialogue ends.

    Raises:
        RlverError: an endpoint cannot be used at all.
    """
    jobs = list_jobs(profiles, repeats, seed)
    transcripts: dict[DialogueKey, Transcript] = {}

    def on_dialogue(dialogue: LoggedDialogue) -> None:
        transcripts[dialogue.transcript.profile, dialogue.repeat] = dialogue.transcript
        if on_progress:
            on_progress(len(transcripts), len(jobs))

    run(closing(play_jobs(jobs, policy, user, preset, pace or Pace(), on_dialogue), policy, user))
    return [transcripts[job.key] for job in jobs]


def run_to_log(
    jobs: Sequence[Job],
    policy: Policy,
    user: User,
    preset: Preset,
    pace: Pace,
    log: RunLog,
    on_dialogue: Callable[[LoggedDialogue], None],
) -> None:
    """Play the jobs that have no score in the log yet, and write each dialogue to the log as soon as it ends.

    Only dialogues in progress are held in memory.

    Args:
        on_dialogue: called with each dialogue that ends.

    Raises:
        RlverError: a profile has changed since the log was begun, or an endpoint cannot be used at all. Dialogues that
            have ended are in the log.
    """
    log.check_profiles(job.profile for job in jobs)

    def append(dialogue: LoggedDialogue) -> None:
        log.append(dialogue)
        on_dialogue(dialogue)

    missing = (job for job in jobs if job.key not in log.scored)
    run(closing(play_jobs(missing, policy, user, preset, pace, append), policy, user))
    log.finish([job.key for job in jobs])


async def play_jobs(
    jobs: Iterable[Job],
    policy: Policy,
    user: User,
    preset: Preset,
    pace: Pace,
    on_dialogue: Callable[[LoggedDialogue], None],
) -> None:
    """Play jobs, at most `pace.slots` at the same time, and call `on_dialogue` with each dialogue that ends."""
    identity = user.identity

    async def play(job: Job) -> None:
        dialogue = Dialogue(job.profile, preset, policy.think)
        rollout = Rollout(dialogue, user, derive(job.seed, "user"), derive(job.seed, "policy"))
        began = time.perf_counter()
        with counting() as usage:
            await play_dialogue(rollout, policy, pace.deadline)
        seconds = time.perf_counter() - began
        transcript = record(dialogue, policy=policy.spec, user=identity, prompt=policy.prompt_hash, seed=job.seed)
        on_dialogue(
            LoggedDialogue(
                repeat=job.repeat,
                profile_hash=profile_hash(job.profile),
                usage=usage,
                transcript=transcript,
                seconds=seconds,
            )
        )

    await for_each(jobs, play, pace.slots)
