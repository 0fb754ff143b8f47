"""The driver of a batch: many dialogues of one policy with one sentient agent, each with its own user and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlver.agents.base import SentientAgent
from rlver.core.dialogue import Dialogue
from rlver.core.emotion import Preset
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.policies.base import Policy


def play(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: SentientAgent,
    preset: Preset,
    *,
    seed: int,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    on_turn: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Play one dialogue per profile to its end and return them in the order of the profiles.

    Args:
        seed: what user and policy draw for dialogue i depends on (seed, i), unless seeds are given for each dialogue.
        user_seeds: one seed per dialogue. Rollouts of one GRPO group share theirs, so that only the policy makes
            them differ.
        policy_seeds: one seed per dialogue.
        on_turn: called after every round with the number of dialogues that have ended.
    """
    dialogues = [Dialogue(profile, preset, policy.think) for profile in profiles]
    users = user_seeds or [derive(seed, "user", i) for i in range(len(profiles))]
    for dialogue, user in zip(dialogues, users, strict=True):
        dialogue.begin(*agent.open(dialogue.profile, user))
    policy.start(dialogues, policy_seeds or [derive(seed, "policy", i) for i in range(len(profiles))])
    while active := [i for i, dialogue in enumerate(dialogues) if dialogue.stop is None]:
        for i, raw in zip(active, policy.reply(active), strict=True):
            if dialogues[i].reply(raw):
                dialogues[i].react(agent.react(dialogues[i], users[i]))
        if on_turn:
            on_turn(sum(dialogue.stop is not None for dialogue in dialogues))
    return dialogues
