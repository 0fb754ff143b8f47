"""The driver: it plays dialogues between a policy and simulated users, many at the same time, with asyncio.

    dialogues = play(profiles, policy, user, preset, seed=0)

Every dialogue is a task of its own, so that none waits for the user or the model of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.emotion import Preset
from rlver.core.errors import CallFailed, RlverError
from rlver.core.interfaces import Policy, User
from rlver.core.profile import Profile
from rlver.core.seeds import derive

T = TypeVar("T")


class Rollout(NamedTuple):
    """A dialogue to play, its user, and the seeds of both sides."""

    dialogue: Dialogue
    user: User
    user_seed: int
    policy_seed: int


async def play_dialogue(rollout: Rollout, policy: Policy, deadline: float | None = None) -> None:
    """Play one dialogue from its opening to its end.

    If either side raises `CallFailed`, the dialogue ends as failed, without a score. Other exceptions are passed on.

    Args:
        deadline: seconds after which the dialogue ends as failed; None sets no limit.
    """
    dialogue, user = rollout.dialogue, rollout.user
    timer = asyncio.timeout(deadline)
    try:
        async with timer:
            dialogue.begin(await user.open(dialogue, rollout.user_seed))
            while dialogue.stop is None:
                if dialogue.reply(await policy.reply(dialogue, rollout.policy_seed)):
                    reaction = await user.react(dialogue, rollout.user_seed)
                    if not isinstance(reaction, Reaction):
                        raise RlverError(f"user {user.identity}: react returned {reaction!r}, which is no Reaction.")
                    dialogue.react(reaction)
    except CallFailed as failure:
        dialogue.fail(failure)
    except TimeoutError:
        if not timer.expired():  # the timeout belongs to the policy or to the user
            raise
        dialogue.fail(f"the dialogue was not over after {deadline:g} s")


async def play_async(
    profiles: Sequence[Profile],
    policy: Policy,
    user: User | Sequence[User],
    preset: Preset,
    *,
    seed: int = 0,
    user_seeds: Sequence[int] | None = None,
    policy_seeds: Sequence[int] | None = None,
    slots: int | None = None,
    deadline: float | None = None,
    on_end: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Play one dialogue per profile to its end and return the dialogues in the order of the profiles.

    Args:
        user: one user for all dialogues, or one user per dialogue.
        seed: random draws of both sides in dialogue i depend on (seed, i), unless there is a seed per dialogue.
        user_seeds: one seed per dialogue. All rollouts of a GRPO group get the same one, so that only the policy makes
            them differ.
        policy_seeds: one seed per dialogue.
        slots: largest number of dialogues in progress. Whenever one ends, the next begins. None starts all at once. The
            number bounds the memory of a local model's KV cache and does not change any text.
        deadline: seconds after which a dialogue ends as failed; None sets no limit.
        on_end: called with the number of ended dialogues whenever one ends.

    Raises:
        RlverError: anything but a failed call, such as an endpoint that cannot be used. It cancels all dialogues.
    """
    users = user if isinstance(user, Sequence) else [user] * len(profiles)
    rollouts = [
        Rollout(
            Dialogue(profile, preset, policy.think),
            users[i],
            user_seeds[i] if user_seeds else derive(seed, "user", i),
            policy_seeds[i] if policy_seeds else derive(seed, "policy", i),
        )
        for i, profile in enumerate(profiles)
    ]
    ended = 0

    async def play_one(rollout: Rollout) -> None:
        nonlocal ended
        await play_dialogue(rollout, policy, deadline)
        ended += 1
        if on_end:
            on_end(ended)

    await for_each(rollouts, play_one, slots)
    return [rollout.dialogue for rollout in rollouts]


def play(
    profiles: Sequence[Profile], policy: Policy, user: User | Sequence[User], preset: Preset, **options: Any
) -> list[Dialogue]:
    """`play_async` for synchronous callers. It also closes the connections of both sides at the end.

    It works inside a running event loop, too, such as that of a notebook.
    """
    users = user if isinstance(user, Sequence) else [user]
    return run(closing(play_async(profiles, policy, user, preset, **options), policy, *users))


async def for_each(
    items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], slots: int | None = None
) -> None:
    """Do `work` for every item, `slots` at a time (None: all at once). The first exception cancels the rest."""
    if slots is not None and slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    queue = iter(items)

    async def worker(first: T) -> None:
        await work(first)
        for item in queue:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in list(islice(queue, slots)):
                group.create_task(worker(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    except KeyboardInterrupt:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # It came from a worker, has stopped the event loop, and is on its way to the caller of the loop, which
            # now cancels all other tasks. If this one raised it again, asyncio would report a lost exception.
            raise asyncio.CancelledError from None
        raise


async def closing(work: Coroutine[Any, Any, T], *sides: object) -> T:
    """Do the work, then close the connections of policies and users, because they belong to the current event loop."""
    try:
        return await work
    finally:
        for side in {id(side): side for side in sides}.values():
            if hasattr(side, "close"):
                await side.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, even if an event loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # An event loop cannot run inside another one of the same thread.
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def in_thread() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await work

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(copy_context().run, asyncio.run, in_thread())
        try:
            return future.result()
        except KeyboardInterrupt:
            loop, task = started.result()
            with suppress(RuntimeError):  # the loop is closed: the work has ended by itself
                loop.call_soon_threadsafe(task.cancel)
            raise
