"""The benchmark: every profile talks with the policy, once or several times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from rlver.core.emotion import Preset
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript, record
from rlver.evaluation.log import Key, LoggedDialogue, RunLog, profile_hash
from rlver.llm.usage import counting
from rlver.policies.base import Policy
from rlver.rollout import closing, play_async, run, together, waits
from rlver.users.base import User


class Job(NamedTuple):
    """A dialogue to be played."""

    profile: Profile
    repeat: int
    seed: int
    """The draws of a dialogue depend on (seed of the run, profile, repeat) alone."""

    @property
    def key(self) -> Key:
        """Its place in a log."""
        return self.profile.id, self.repeat


class Pace(NamedTuple):
    """How many dialogues run at once; results do not depend on it."""

    batch: int = 64
    """Dialogues that a policy answers in step: many for a local model, one for whoever waits for an endpoint."""
    workers: int = 1
    """Batches that run independently."""
    deadline: float | None = None
    """Seconds after which a batch is given up."""


def list_jobs(profiles: Sequence[Profile], repeats: int, seed: int) -> list[Job]:
    """All dialogues of a benchmark, one round of all profiles after the other."""
    return [Job(profile, k, derive(seed, profile.id, k)) for k in range(repeats) for profile in profiles]


def run_benchmark(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: User,
    preset: Preset,
    seed: int,
    repeats: int = 1,
    batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Transcript]:
    """Play every profile `repeats` times and return the transcripts, one round of all profiles after the other.

    Args:
        batch: dialogues that run at once.
        on_progress: called with (dialogues that ended, dialogues in all).
    """
    jobs = list_jobs(profiles, repeats, seed)
    found: dict[Key, Transcript] = {}

    def keep(dialogue: LoggedDialogue) -> None:
        found[dialogue.transcript.profile, dialogue.repeat] = dialogue.transcript

    def on_ended(ended: int) -> None:
        if on_progress:
            on_progress(ended, len(jobs))

    work = play_jobs(jobs, policy, agent, preset, Pace(batch), keep, on_ended)
    run(closing(work, policy, agent), waits(policy, agent))
    return [found[job.key] for job in jobs]


def run_to_log(
    jobs: Sequence[Job],
    policy: Policy,
    agent: User,
    preset: Preset,
    pace: Pace,
    log: RunLog,
    on_dialogue: Callable[[LoggedDialogue], None],
) -> None:
    """Play the jobs that the log has no score for, and write each into it as soon as it is over.

    Nothing but what is under way is held in memory.

    Raises:
        RlverError: an endpoint cannot be used at all; what is over is in the log.
    """
    log.expect(job.profile for job in jobs)

    def keep(dialogue: LoggedDialogue) -> None:
        log.append(dialogue)
        on_dialogue(dialogue)

    left = (job for job in jobs if job.key not in log.scored)
    work = play_jobs(left, policy, agent, preset, pace, keep)
    run(closing(work, policy, agent), waits(policy, agent))
    log.finish([job.key for job in jobs])


async def play_jobs(
    jobs: Iterable[Job],
    policy: Policy,
    agent: User,
    preset: Preset,
    pace: Pace,
    on_dialogue: Callable[[LoggedDialogue], None],
    on_ended: Callable[[int], None] | None = None,
) -> None:
    """Play jobs by `pace.workers` workers that take a batch whenever they are free."""
    queue = iter(jobs)
    user = agent.identity
    done = [0] * pace.workers
    at_work = [0] * pace.workers

    async def work(number: int) -> None:
        # Policies hold the state of a batch, so every worker has one of its own, of the same model.
        own = copy.copy(policy) if pace.workers > 1 else policy
        while chosen := list(islice(queue, pace.batch)):

            def on_end(ended: int) -> None:
                at_work[number] = ended
                if on_ended:
                    on_ended(sum(done) + sum(at_work))

            with counting() as usage:
                dialogues = await play_async(
                    [job.profile for job in chosen],
                    own,
                    agent,
                    preset,
                    user_seeds=[derive(job.seed, "user") for job in chosen],
                    policy_seeds=[derive(job.seed, "policy") for job in chosen],
                    on_end=on_end,
                    deadline=pace.deadline,
                )
            done[number] += len(chosen)
            at_work[number] = 0
            for job, dialogue in zip(chosen, dialogues, strict=True):
                transcript = record(dialogue, policy=policy.spec, user=user, prompt=policy.prompt_hash, seed=job.seed)
                on_dialogue(
                    LoggedDialogue(
                        repeat=job.repeat,
                        profile_hash=profile_hash(job.profile),
                        # A batch that shares an endpoint cannot be told apart; its first dialogue stands for it.
                        usage=usage if dialogue is dialogues[0] else {},
                        transcript=transcript,
                    )
                )

    await together([work(number) for number in range(pace.workers)])
