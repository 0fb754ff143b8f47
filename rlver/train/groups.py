"""Playing the dialogues of a step: groups of rollouts, which algorithms without a critic compare with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.core.seeds import derive
from rlver.policies.local import LocalPolicy
from rlver.rollout import play
from rlver.train.config import TrainConfig
from rlver.train.credit import Reward, turn_rewards
from rlver.train.curriculum import Curriculum, Meeting


@dataclass(frozen=True)
class Group:
    """The rollouts of one meeting. Profile, user and user seed are the same; only the policy makes them differ."""

    meeting: Meeting
    dialogues: list[Dialogue]
    rewards: list[list[float]]
    """For each dialogue, the reward of each turn."""

    @property
    def varies(self) -> bool:
        """Whether some rollout earned more than another. If not, comparing them gives no gradient."""
        totals = [sum(rewards) for rewards in self.rewards]
        return max(totals) - min(totals) >= 1e-6


@dataclass(frozen=True)
class Rollouts:
    """What was played in a step."""

    groups: list[Group]
    """The groups to learn from."""
    metrics: dict[str, float]
    failures: list[str]
    """Why dialogues failed, one entry per dialogue."""


def play_step(
    config: TrainConfig,
    step: int,
    curriculum: Curriculum,
    policy: LocalPolicy,
    users: Mapping[UserType, User],
    reward: Reward | None = None,
) -> Rollouts:
    """Draw users and play the dialogues of a step. With `zero_variance: refill`, repeat until the batch is full.

    Raises:
        RlverError: no group can be learned from, because at least one dialogue of each failed.
    """
    groups: list[Group] = []
    uniform: list[Group] = []
    failures: list[str] = []
    wanted, drawn, failed = config.batch // config.rollouts, 0, 0
    for refill in range(1 + (config.refills if config.zero_variance == "refill" else 0)):
        meetings = curriculum.draw(step, wanted - len(groups), refill)
        place = (step, refill) if refill else (step,)
        played, reasons = play_groups(config, place, meetings, policy, users, reward)
        curriculum.observe([(group.meeting, group.dialogues) for group in played])
        failures += reasons
        drawn += len(meetings)
        failed += config.rollouts * (len(meetings) - len(played))
        uniform += [group for group in played if not group.varies]
        groups += [group for group in played if config.zero_variance == "keep" or group.varies]
        if len(groups) == wanted:
            break
    if not groups and not uniform:
        raise RlverError(f"nothing of step {step + 1} can be learned from: a dialogue failed ({failures[0]}).")
    # `failed` counts the other dialogues of their groups, too, which have nothing left to be compared with.
    metrics = {"failed": float(failed)} if failed else {}
    if config.rollouts > 1:
        metrics["zero_variance_groups"] = len(uniform) / drawn
    # If no group varies, train on the uniform ones: the divergence from the starting policy still has a gradient.
    return Rollouts(groups or uniform, metrics | curriculum.metrics(), failures)


def play_groups(
    config: TrainConfig,
    place: tuple[int, ...],
    meetings: Sequence[Meeting],
    policy: LocalPolicy,
    users: Mapping[UserType, User],
    reward: Reward | None = None,
) -> tuple[list[Group], list[str]]:
    """Play all rollouts of all meetings in one batch. Returns complete groups, and why dialogues failed.

    A dialogue that failed, because its user or its sampler could not be reached or understood, has no reward, and the
    rest of its group has nothing to be compared with. Such groups are left out.

    Args:
        place: position in the run, from which seeds are derived.
    """
    size = config.rollouts
    per_dialogue = [meeting for meeting in meetings for _ in range(size)]
    dialogues = play(
        [meeting.profile for meeting in per_dialogue],
        policy,
        [users[meeting.user_type] for meeting in per_dialogue],
        config.rules,
        seed=derive(config.seed, "rollout", *place),
        user_seeds=[derive(config.seed, "user", *place, i // size) for i in range(len(per_dialogue))],
        slots=config.slots,
    )
    groups = []
    for meeting, start in zip(meetings, range(0, len(dialogues), size), strict=True):
        rollouts = dialogues[start : start + size]
        if not any(map(_failed, rollouts)):
            rewards = [turn_rewards(dialogue, config.credit, reward) for dialogue in rollouts]
            groups.append(Group(meeting, rollouts, rewards))
    return groups, [dialogue.error or "no reason is known" for dialogue in dialogues if _failed(dialogue)]


def _failed(dialogue: Dialogue) -> bool:
    return dialogue.stop is None or not dialogue.stop.scored
