"""The benchmark: every profile meets the policy, once or several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rlver.core.dialogue import Dialogue
from rlver.core.emotion import Preset
from rlver.core.interfaces import Policy, User
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript, record
from rlver.evaluation.log import Key, LoggedDialogue, RunLog, profile_hash
from rlver.llm.usage import counting
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import Rollout, closing, for_each, lead, run
from rlver.users.embedded.user import EmbeddedUser

_HUMAN = "human"


class Job(NamedTuple):
    """A dialogue to be played."""

    profile: Profile
    repeat: int
    seed: int
    """The draws of a dialogue depend on (seed of the benchmark, profile, repeat) alone."""

    @property
    def key(self) -> Key:
        """Its place in a log."""
        return self.profile.id, self.repeat


class Pace(NamedTuple):
    """How many dialogues are at work, and how long one may take. Scores do not depend on it."""

    slots: int = 64
    """Dialogues at work at once."""
    deadline: float | None = None
    """Seconds after which a dialogue ends as failed; None sets no limit."""


def pace_for(
    policy: Policy, user: User, *, batch: int = 64, concurrency: int = 32, deadline: float | None = 900.0
) -> Pace:
    """The pace that suits a policy and a user.

    Args:
        batch: dialogues that a local model serves at once.
        concurrency: calls to an endpoint at once.
        deadline: seconds that a dialogue may take where somebody outside of this process is waited for.
    """
    if _HUMAN in (policy.spec, user.identity):
        return Pace(1)
    offline = isinstance(user, EmbeddedUser)
    if getattr(policy, "engine", None) is None:
        return Pace(batch) if offline and isinstance(policy, ScriptedPolicy) else Pace(concurrency, deadline)
    if offline:
        return Pace(batch)
    # A local model gives all dialogues their tokens in turn, so each of them may take longer.
    slots = min(batch, concurrency)
    return Pace(slots, deadline * slots if deadline else None)


def list_jobs(profiles: Sequence[Profile], repeats: int, seed: int) -> list[Job]:
    """All dialogues of a benchmark, one round of all profiles after the other."""
    return [Job(profile, k, derive(seed, profile.id, k)) for k in range(repeats) for profile in profiles]


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
    """Play every profile `repeats` times and return the transcripts, one round of all profiles after the other.

    Args:
        on_progress: called with (dialogues that ended, dialogues in all).
    """
    jobs = list_jobs(profiles, repeats, seed)
    transcripts: dict[Key, Transcript] = {}

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
    """Play the jobs that the log has no score for, and write each dialogue into it as soon as it is over.

    Only the dialogues at work are held in memory.

    Raises:
        RlverError: an endpoint cannot be used at all. The dialogues that are over are in the log.
    """
    log.expect(job.profile for job in jobs)

    def append(dialogue: LoggedDialogue) -> None:
        log.append(dialogue)
        on_dialogue(dialogue)

    left = (job for job in jobs if job.key not in log.scored)
    run(closing(play_jobs(left, policy, user, preset, pace, append), policy, user))
    log.finish([job.key for job in jobs])


async def play_jobs(
    jobs: Iterable[Job],
    policy: Policy,
    user: User,
    preset: Preset,
    pace: Pace,
    on_dialogue: Callable[[LoggedDialogue], None],
) -> None:
    """Play jobs, `pace.slots` at a time, and hand over each dialogue as soon as it is over."""
    identity = user.identity

    async def play(job: Job) -> None:
        dialogue = Dialogue(job.profile, preset, policy.think)
        rollout = Rollout(dialogue, user, derive(job.seed, "user"), derive(job.seed, "policy"))
        with counting() as usage:
            await lead(rollout, policy, pace.deadline)
        transcript = record(dialogue, policy=policy.spec, user=identity, prompt=policy.prompt_hash, seed=job.seed)
        on_dialogue(
            LoggedDialogue(
                repeat=job.repeat, profile_hash=profile_hash(job.profile), usage=usage, transcript=transcript
            )
        )

    await for_each(jobs, play, pace.slots)
