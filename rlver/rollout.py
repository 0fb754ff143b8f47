"""The driver: dialogues of one policy with one sentient agent, each with its own user and seed.

Policy and agent may answer at once (a script, the embedded agent), after others have had their turn (a local model,
which samples for all who ask) or later (a model behind an endpoint); there is one driver for all of them. Every
dialogue is led for itself, so that nobody waits for another's user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from rlver.core.dialogue import Dialogue, StopReason
from rlver.core.emotion import Preset
from rlver.core.errors import CallFailed, Unreadable
from rlver.core.garbage import seldom_collecting
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.policies.base import Policy
from rlver.users.base import User

T = TypeVar("T")


def play(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: User | Sequence[User],
    preset: Preset,
    *,
    seed: int,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    on_end: Callable[[int], None] | None = None,
    slots: int | None = None,
) -> list[Dialogue]:
    """Play one dialogue per profile to its end and return them in the order of the profiles.

    Args:
        agent: one for all dialogues, or one for each.
        seed: what user and policy draw for dialogue i depends on (seed, i), unless seeds are given for each dialogue.
        user_seeds: one seed per dialogue. Rollouts of one GRPO group share theirs, so that only the policy makes
            them differ.
        policy_seeds: one seed per dialogue.
        on_end: called whenever a dialogue has ended, with the number of those that have.
        slots: most dialogues at work at once; whenever one ends the next begins. None leads all at once. It bounds
            the memory of a local model's cache and changes no text.
    """
    agents = agent if isinstance(agent, Sequence) else [agent]
    work = closing(
        play_async(
            profiles,
            policy,
            agent,
            preset,
            seed=seed,
            user_seeds=user_seeds,
            policy_seeds=policy_seeds,
            on_end=on_end,
            slots=slots,
        ),
        policy,
        *set(agents),
    )
    return run(work, waits(policy, *agents))


async def play_async(
    profiles: Sequence[Profile],
    policy: Policy,
    agent: User | Sequence[User],
    preset: Preset,
    *,
    seed: int = 0,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    on_end: Callable[[int], None] | None = None,
    slots: int | None = None,
    deadline: float | None = None,
) -> list[Dialogue]:
    """As `play`, for a running event loop. After `deadline` seconds what still runs ends as failed."""
    dialogues = [Dialogue(profile, preset, policy.think) for profile in profiles]
    agents = agent if isinstance(agent, Sequence) else [agent] * len(profiles)
    users = user_seeds or [derive(seed, "user", i) for i in range(len(profiles))]
    policies = policy_seeds or [derive(seed, "policy", i) for i in range(len(profiles))]
    try:
        async with asyncio.timeout(deadline) if deadline else nullcontext():
            await _play(dialogues, policy, agents, users, policies, on_end, slots)
    except TimeoutError:
        for dialogue in dialogues:
            if dialogue.stop is None:
                dialogue.fail(f"the dialogue was not over after {deadline:g} s")
    return dialogues


async def _play(
    dialogues: list[Dialogue],
    policy: Policy,
    agents: Sequence[User],
    users: Sequence[int],
    policies: Sequence[int],
    on_end: Callable[[int], None] | None,
    slots: int | None,
) -> None:
    """Lead all dialogues, `slots` at once: whoever has ended one begins the next."""
    policy.start(dialogues, policies)
    queue = iter(range(len(dialogues)))
    ended = 0

    async def work() -> None:
        nonlocal ended
        for index in queue:
            await _lead(index, dialogues[index], policy, agents[index], users[index])
            ended += 1
            if on_end:
                on_end(ended)

    count = min(slots or len(dialogues), len(dialogues))
    await together([work() for _ in range(count)], waits(policy, *agents))


async def _lead(index: int, dialogue: Dialogue, policy: Policy, agent: User, user: int) -> None:
    """One dialogue from its opening to its end."""
    try:
        opening = await _answer(partial(agent.open, dialogue.profile, user))
        if isinstance(opening, CallFailed):
            _fail(dialogue, opening)
        else:
            dialogue.begin(*opening)
        while dialogue.stop is None:
            replies = policy.reply([index])
            (raw,) = await replies if isinstance(replies, Awaitable) else replies
            if not _says(dialogue, raw):
                continue
            reaction = await _answer(partial(agent.react, dialogue, user))
            if isinstance(reaction, CallFailed):
                _fail(dialogue, reaction)
            else:
                dialogue.react(reaction)
    finally:
        if end := getattr(policy, "end", None):
            end(index)


def _says(dialogue: Dialogue, raw: str | CallFailed) -> bool:
    """Hand the reply over. Returns whether there is something to react to."""
    if isinstance(raw, CallFailed):
        _fail(dialogue, raw)
        return False
    return dialogue.reply(raw)


def _fail(dialogue: Dialogue, failure: CallFailed) -> None:
    dialogue.fail(str(failure), StopReason.UNREADABLE if isinstance(failure, Unreadable) else StopReason.ERROR)


async def _answer(ask: Callable[[], T | Awaitable[T]]) -> T | CallFailed:
    """What somebody answers, at once or later. A failure is a value."""
    try:
        answer = ask()
        return await answer if isinstance(answer, Awaitable) else answer
    except CallFailed as error:
        return error


async def together(work: Sequence[Coroutine[Any, Any, T]], waiting: bool = True) -> list[T]:
    """The results of all, in order. The first exception ends the rest and is raised as it is.

    Where nobody waits for the outside (`waiting` false) they take turns, and no event loop is needed.
    """
    if len(work) < 2:  # one at a time needs no task
        return [await piece for piece in work]
    if not waiting:
        return await _in_turn(work)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(piece) for piece in work]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


async def _in_turn(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Resume one after the other, round after round, until all have ended."""
    results: dict[Coroutine[Any, Any, T], T] = {}
    try:
        while len(results) < len(work):
            for piece in work:
                if piece not in results:
                    try:
                        _resume(piece)
                    except StopIteration as end:
                        results[piece] = end.value
            await asyncio.sleep(0)
    finally:
        for piece in work:
            piece.close()
    return [results[piece] for piece in work]


def _resume(work: Coroutine[Any, Any, Any]) -> None:
    """Let work go on until it gives way to others (`asyncio.sleep(0)`). Raises StopIteration at its end."""
    if work.send(None) is not None:
        raise RuntimeError("this work was said never to wait for the outside, and it does")


async def closing(work: Coroutine[Any, Any, T], *sides: object) -> T:
    """Do the work, then close what the sides have open towards endpoints: connections belong to an event loop."""
    try:
        return await work
    finally:
        for side in sides:
            if hasattr(side, "close"):
                await side.close()


def waits(policy: Policy, *agents: User) -> bool:
    """Whether one of them waits for somebody outside of this process, which takes an event loop."""
    outside = getattr(policy, "waits", iscoroutinefunction(policy.reply))
    return outside or any(iscoroutinefunction(ask) for agent in agents for ask in (agent.open, agent.react))


def run(work: Coroutine[Any, Any, T], waiting: bool = True) -> T:
    """Run a coroutine to its end and return its result.

    What never waits for the outside (`waiting` false) is run without an event loop: it may be called from within one
    (a notebook), and Ctrl-C interrupts whoever reads the keyboard at once.
    """
    with seldom_collecting():
        if waiting:
            return asyncio.run(work)
        try:
            while True:
                _resume(work)
        except StopIteration as end:
            result: T = end.value
            return result
