"""Groups: the rollouts of one profile, which the algorithms without a critic compare with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlver.core.dialogue import Dialogue
from rlver.core.emotion import Preset
from rlver.core.interfaces import User, UserType
from rlver.core.seeds import derive
from rlver.policies.local import LocalPolicy
from rlver.rollout import play
from rlver.train.credit import Credit, turn_rewards
from rlver.train.curriculum import Meeting


@dataclass(frozen=True)
class Group:
    """The rollouts of one meeting: same profile, same user, same user's seed; only the policy makes them differ."""

    meeting: Meeting
    dialogues: list[Dialogue]

    def varies(self, credit: Credit) -> bool:
        """Whether some rollout earned more than another; else comparing them teaches nothing."""
        totals = [sum(turn_rewards(dialogue, credit)) for dialogue in self.dialogues]
        return max(totals) - min(totals) >= 1e-6


def play_groups(
    meetings: Sequence[Meeting],
    size: int,
    policy: LocalPolicy,
    agents: Mapping[UserType, User],
    preset: Preset,
    slots: int | None,
    seed: int,
    place: tuple[int, ...],
) -> tuple[list[Group], list[str]]:
    """Play `size` rollouts of each meeting, all in one batch. Returns groups, and why dialogues failed.

    A dialogue that failed (its user or its sampler could not be reached or read) has no reward, and leaves nothing to
    compare the others of its group with: such groups are left out.

    Args:
        slots: most dialogues at work at once.
        place: where in the run of `seed` we are.
    """
    everyone = [meeting for meeting in meetings for _ in range(size)]
    dialogues = play(
        [meeting.profile for meeting in everyone],
        policy,
        [agents[meeting.user] for meeting in everyone],
        preset,
        seed=derive(seed, "rollout", *place),
        user_seeds=[derive(seed, "user", *place, i // size) for i in range(len(everyone))],
        slots=slots,
    )
    groups = [
        Group(meeting, dialogues[start : start + size])
        for meeting, start in zip(meetings, range(0, len(everyone), size), strict=True)
    ]
    sound = [group for group in groups if not any(map(_failed, group.dialogues))]
    return sound, [dialogue.error or "no reason is known" for dialogue in dialogues if _failed(dialogue)]


def _failed(dialogue: Dialogue) -> bool:
    return dialogue.stop is None or not dialogue.stop.scored
