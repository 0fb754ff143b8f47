"""The benchmark: every profile talks with the policy, once or several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlver.agents.base import SentientAgent
from rlver.core.emotion import Preset
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript, record
from rlver.policies.base import Policy
from rlver.rollout import play


def run_benchmark(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: SentientAgent,
    preset: Preset,
    seed: int,
    repeats: int = 1,
    batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Transcript]:
    """Play every profile `repeats` times and return the transcripts, one round of all profiles after the other.

    Args:
        seed: the draws of a dialogue depend on (seed, profile, repeat) alone, neither on the batch nor on what
            other profiles are benchmarked.
        batch: dialogues that run at once.
        on_progress: called with (dialogues that ended, dialogues in all).
    """
    jobs = [(profile, derive(seed, profile.id, repeat)) for repeat in range(repeats) for profile in profiles]
    transcripts: list[Transcript] = []
    for first in range(0, len(jobs), batch):
        chosen, seeds = zip(*jobs[first : first + batch], strict=True)

        def on_turn(ended: int, before: int = first) -> None:
            if on_progress:
                on_progress(before + ended, len(jobs))

        dialogues = play(
            chosen,
            policy,
            agent,
            preset,
            seed=seed,
            user_seeds=[derive(own, "user") for own in seeds],
            policy_seeds=[derive(own, "policy") for own in seeds],
            on_turn=on_turn,
        )
        for dialogue, own in zip(dialogues, seeds, strict=True):
            transcripts.append(
                record(dialogue, policy=policy.spec, user=agent.identity, prompt=policy.prompt_hash, seed=own)
            )
    return transcripts
