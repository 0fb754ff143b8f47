"""The driver: dialogues of one policy with one sentient agent, each with its own user and seed.

Policy and agent may answer at once (a script, the embedded agent, a local model) or later (a model behind an
endpoint); there is one driver for all of them. Many dialogues that run independently are many batches of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from rlver.agents.base import SentientAgent
from rlver.core.dialogue import Dialogue, StopReason
from rlver.core.emotion import Preset
from rlver.core.errors import CallFailed, Unreadable
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.policies.base import Policy

T = TypeVar("T")


def play(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: SentientAgent | Sequence[SentientAgent],
    preset: Preset,
    *,
    seed: int,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    on_turn: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Play one dialogue per profile to its end and return them in the order of the profiles.

    Args:
        agent: one for all dialogues, or one for each.
        seed: what user and policy draw for dialogue i depends on (seed, i), unless seeds are given for each dialogue.
        user_seeds: one seed per dialogue. Rollouts of one GRPO group share theirs, so that only the policy makes
            them differ.
        policy_seeds: one seed per dialogue.
        on_turn: called after every round with the number of dialogues that have ended.
    """
    agents = [agent] if not isinstance(agent, Sequence) else agent
    work = closing(
        play_async(
            profiles,
            policy,
            agent,
            preset,
            seed=seed,
            user_seeds=user_seeds,
            policy_seeds=policy_seeds,
            on_turn=on_turn,
        ),
        policy,
        *set(agents),
    )
    return run(work, waits(policy, *agents))


async def play_async(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: SentientAgent | Sequence[SentientAgent],
    preset: Preset,
    *,
    seed: int = 0,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    on_turn: Callable[[int], None] | None = None,
    deadline: float | None = None,
) -> list[Dialogue]:
    """As `play`, for a running event loop. After `deadline` seconds what still runs ends as failed."""
    dialogues = [Dialogue(profile, preset, policy.think) for profile in profiles]
    agents = agent if isinstance(agent, Sequence) else [agent] * len(profiles)
    users = user_seeds or [derive(seed, "user", i) for i in range(len(profiles))]
    policies = policy_seeds or [derive(seed, "policy", i) for i in range(len(profiles))]
    try:
        async with asyncio.timeout(deadline) if deadline else nullcontext():
            await _play(dialogues, policy, agents, users, policies, on_turn)
    except TimeoutError:
        for dialogue in dialogues:
            if dialogue.stop is None:
                dialogue.fail(f"the dialogue was not over after {deadline:g} s")
    return dialogues


async def _play(
    dialogues: list[Dialogue],
    policy: Policy,
    agents: Sequence[SentientAgent],
    users: Sequence[int],
    policies: Sequence[int],
    on_turn: Callable[[int], None] | None,
) -> None:
    everyone = range(len(dialogues))
    openings = await _answers(
        [partial(a.open, d.profile, user) for a, d, user in zip(agents, dialogues, users, strict=True)]
    )
    for i, opening in zip(everyone, openings, strict=True):
        if isinstance(opening, CallFailed):
            _fail(dialogues[i], opening)
        else:
            dialogues[i].begin(*opening)
    policy.start(dialogues, policies)
    while active := [i for i in everyone if dialogues[i].stop is None]:
        replies = policy.reply(active)
        raws = await replies if isinstance(replies, Awaitable) else replies
        said = [i for i, raw in zip(active, raws, strict=True) if _says(dialogues[i], raw)]
        reactions = await _answers([partial(agents[i].react, dialogues[i], users[i]) for i in said])
        for i, reaction in zip(said, reactions, strict=True):
            if isinstance(reaction, CallFailed):
                _fail(dialogues[i], reaction)
            else:
                dialogues[i].react(reaction)
        if on_turn:
            on_turn(sum(dialogue.stop is not None for dialogue in dialogues))


def _says(dialogue: Dialogue, raw: str | CallFailed) -> bool:
    """Hand the reply over. Returns whether there is something to react to."""
    if isinstance(raw, CallFailed):
        _fail(dialogue, raw)
        return False
    return dialogue.reply(raw)


def _fail(dialogue: Dialogue, failure: CallFailed) -> None:
    dialogue.fail(str(failure), StopReason.UNREADABLE if isinstance(failure, Unreadable) else StopReason.ERROR)


async def _answers(asks: Sequence[Callable[[], T | Awaitable[T]]]) -> list[T | CallFailed]:
    """What each of them answers, in order: at once where it can be, else together. Failures are values."""
    answers = [_asked(ask) for ask in asks]
    later = [answer for answer in answers if isinstance(answer, Awaitable)]
    found = iter(await together([_caught(answer) for answer in later]))
    return [next(found) if isinstance(answer, Awaitable) else answer for answer in answers]


def _asked(ask: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T] | CallFailed:
    try:
        return ask()
    except CallFailed as error:
        return error


async def _caught(answer: Awaitable[T]) -> T | CallFailed:
    try:
        return await answer
    except CallFailed as error:
        return error


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order. The first exception cancels the rest and is raised as it is."""
    if len(work) < 2:  # one at a time needs no task, and what never waits no event loop
        return [await piece for piece in work]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(piece) for piece in work]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


async def closing(work: Coroutine[Any, Any, T], *sides: object) -> T:
    """Do the work, then close what the sides have open towards endpoints: connections belong to an event loop."""
    try:
        return await work
    finally:
        for side in sides:
            if hasattr(side, "close"):
                await side.close()


def waits(policy: Policy, *agents: SentientAgent) -> bool:
    """Whether one of them answers later."""
    return any(
        map(iscoroutinefunction, (policy.reply, *(ask for agent in agents for ask in (agent.open, agent.react))))
    )


def run(work: Coroutine[Any, Any, T], waiting: bool = True) -> T:
    """Run a coroutine to its end and return its result.

    What never waits (`waiting` false) is run without an event loop: it may be called from within one (a notebook), and
    Ctrl-C interrupts whoever reads the keyboard at once.
    """
    if waiting:
        return asyncio.run(work)
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("this work was said never to wait, and it waits")
