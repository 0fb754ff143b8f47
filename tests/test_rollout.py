"""The driver: many dialogues at a time, each led for itself, in a script, in a notebook and in a service."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply, StopReason
from rlver.core.emotion import PRESETS
from rlver.core.errors import CallFailed, RlverError, Unreadable
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.policies.human import HumanPolicy
from rlver.rollout import closing, for_each, play, play_async, run
from rlver.stories.generate import generate
from rlver.users.human import HumanUser

SAGE = PRESETS["sage"].model_copy(update={"replies": 3})
PROFILES: list[Profile] = generate("en", "train", 6, 0)
IDS = [profile.id for profile in PROFILES]


class Policy:
    """Replies with its seed and the turn, after a number of seconds."""

    spec = "toy"
    think = False
    prompt_hash = ""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.closed = 0

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return Reply.parse(f"Reply {len(dialogue.turns)} with seed {seed}.", self.think)

    async def close(self) -> None:
        self.closed += 1


class User:
    """Speaks at once, or as soon as the dialogue's turn comes in a subclass. It notes which dialogues are at work."""

    identity = "toy"

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.most = 0
        self.order: list[str] = []
        self.closed = 0

    async def wait(self, dialogue: Dialogue) -> None:
        """What happens before a reaction."""
        await asyncio.sleep(0)

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        self.active.add(dialogue.profile.id)
        self.most = max(self.most, len(self.active))
        dialogue.on_end(lambda: self.end(dialogue))
        return Opening(f"Opening with seed {seed}.")

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        await self.wait(dialogue)
        return Reaction(change=1, utterance=f"Reaction with seed {seed}.")

    def end(self, dialogue: Dialogue) -> None:
        self.active.discard(dialogue.profile.id)
        self.order.append(dialogue.profile.id)

    async def close(self) -> None:
        self.closed += 1


def said(dialogues: list[Dialogue]) -> list[list[str]]:
    """The messages of all dialogues."""
    return [[message.content for message in dialogue.messages()] for dialogue in dialogues]


def test_dialogues_come_back_in_the_order_of_the_profiles_with_seeds_of_their_own() -> None:
    dialogues = play(PROFILES, Policy(), User(), SAGE, seed=7)
    assert [dialogue.profile.id for dialogue in dialogues] == IDS
    assert all(dialogue.stop is StopReason.TURN_LIMIT and len(dialogue.turns) == 3 for dialogue in dialogues)
    for i, dialogue in enumerate(dialogues):
        user, policy = derive(7, "user", i), derive(7, "policy", i)
        assert dialogue.opening == f"Opening with seed {user}."
        assert [turn.reply for turn in dialogue.turns] == [f"Reply {turn} with seed {policy}." for turn in range(3)]
        assert {turn.reaction.utterance for turn in dialogue.turns if turn.reaction} == {f"Reaction with seed {user}."}


def test_no_profiles_give_no_dialogues() -> None:
    assert play([], Policy(), User(), SAGE) == play([], Policy(), [], SAGE, slots=3) == []


def test_seeds_and_users_can_be_given_for_each_dialogue() -> None:
    class Other(User):
        async def open(self, dialogue: Dialogue, seed: int) -> Opening:
            return Opening("Another user.")

    users = [User(), Other(), User()]
    dialogues = play(PROFILES[:3], Policy(), users, SAGE, user_seeds=[4, 4, 5], policy_seeds=[1, 2, 3])
    assert [dialogue.opening for dialogue in dialogues] == [
        "Opening with seed 4.",
        "Another user.",
        "Opening with seed 5.",
    ]
    assert [dialogue.turns[0].reply[-2] for dialogue in dialogues] == ["1", "2", "3"]


def test_a_running_event_loop_is_no_obstacle() -> None:
    """`play` in a script, `play` in a notebook and `play_async` in a service give the same dialogues."""

    async def notebook() -> list[Dialogue]:
        return play(PROFILES, Policy(), User(), SAGE, seed=1)

    async def service() -> list[Dialogue]:
        return await play_async(PROFILES, Policy(), User(), SAGE, seed=1)

    expected = said(play(PROFILES, Policy(), User(), SAGE, seed=1))
    assert said(asyncio.run(notebook())) == said(asyncio.run(service())) == expected


def test_run_returns_raises_and_sees_context_variables_in_any_place() -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)

    async def read() -> int:
        await asyncio.sleep(0)
        return variable.get()

    async def fail() -> None:
        raise KeyError("mine")

    async def inside() -> int:
        variable.set(2)
        with pytest.raises(KeyError, match="mine"):
            run(fail())
        return run(read())

    variable.set(1)
    assert run(read()) == 1 and asyncio.run(inside()) == 2
    with pytest.raises(KeyError, match="mine"):
        run(fail())


@pytest.mark.parametrize("slots", [1, 2, 5, 6, 50, None])
def test_slots_bound_the_number_of_dialogues_at_work(slots: int | None) -> None:
    user, ended = User(), list[int]()
    dialogues = play(PROFILES, Policy(0.001), user, SAGE, seed=1, slots=slots, on_end=ended.append)
    assert user.most == min(slots or 6, 6) and not user.active
    assert ended == [1, 2, 3, 4, 5, 6]
    assert said(dialogues) == said(play(PROFILES, Policy(), User(), SAGE, seed=1))


def test_the_next_dialogue_begins_as_soon_as_one_ends() -> None:
    """While the first user is slow, the other slot leads all other dialogues."""

    class FirstIsSlow(User):
        async def wait(self, dialogue: Dialogue) -> None:
            if dialogue.profile.id == IDS[0]:
                await others.wait()

    user, others = FirstIsSlow(), asyncio.Event()
    play(PROFILES, Policy(), user, SAGE, slots=2, on_end=lambda ended: others.set() if ended == 5 else None)
    assert user.order == [*IDS[1:], IDS[0]]


@pytest.mark.parametrize("slots", [0, -1])
def test_an_invalid_number_of_slots_is_rejected(slots: int) -> None:
    with pytest.raises(ValueError, match=f"slots must be at least 1, not {slots}"):
        play(PROFILES, Policy(), User(), SAGE, slots=slots)


def test_items_are_taken_when_there_is_a_slot_for_them() -> None:
    """A benchmark of any length holds only the dialogues at work in memory."""
    active = 0

    def items() -> Iterator[int]:
        for item in range(20):
            assert active <= 3
            yield item

    async def work(item: int) -> None:
        nonlocal active
        active += 1
        await asyncio.sleep(0.001 * (item % 3))
        active -= 1

    run(for_each(items(), work, 3))


def test_a_deadline_ends_one_dialogue_and_the_others_go_on() -> None:
    class Late(User):
        async def wait(self, dialogue: Dialogue) -> None:
            await asyncio.sleep(60 if dialogue.profile.id == IDS[1] and len(dialogue.turns) == 2 else 0)

    for slots in (1, None):
        user, ended = Late(), list[int]()
        start = time.monotonic()
        dialogues = play(PROFILES, Policy(), user, SAGE, slots=slots, deadline=0.2, on_end=ended.append)
        assert time.monotonic() - start < 10
        assert [dialogue.stop for dialogue in dialogues] == [
            StopReason.ERROR if profile == IDS[1] else StopReason.TURN_LIMIT for profile in IDS
        ]
        assert dialogues[1].error == "the dialogue was not over after 0.2 s"
        assert len(dialogues[1].turns) == 2 and dialogues[1].turns[-1].reaction is None
        assert ended == [1, 2, 3, 4, 5, 6] and len(user.order) == 6


def test_a_deadline_counts_from_the_beginning_of_its_dialogue() -> None:
    """Dialogues that waited long for a slot have as much time as the first ones."""
    start = time.monotonic()
    dialogues = play(PROFILES, Policy(0.1), User(), SAGE, slots=1, deadline=1.2)
    assert time.monotonic() - start > 1.2
    assert all(dialogue.stop is StopReason.TURN_LIMIT for dialogue in dialogues)


def test_a_timeout_that_is_not_the_drivers_ends_the_run() -> None:
    class Impatient(User):
        async def wait(self, dialogue: Dialogue) -> None:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)

    for deadline in (None, 30.0):
        with pytest.raises(TimeoutError):
            play(PROFILES, Policy(), Impatient(), SAGE, deadline=deadline)


class FailingPolicy(Policy):
    """Fails in the second reply to some profiles."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        super().__init__()
        self.errors = errors

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        if len(dialogue.turns) == 1 and dialogue.profile.id in self.errors:
            raise self.errors[dialogue.profile.id]
        return await super().reply(dialogue, seed)


class FailingUser(User):
    """Fails in the opening or in the second reaction for some profiles."""

    def __init__(self, opening: dict[str, BaseException], reaction: dict[str, BaseException]) -> None:
        super().__init__()
        self.opening, self.reaction = opening, reaction

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        if dialogue.profile.id in self.opening:
            raise self.opening[dialogue.profile.id]
        return await super().open(dialogue, seed)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        if len(dialogue.turns) == 2 and dialogue.profile.id in self.reaction:
            raise self.reaction[dialogue.profile.id]
        return await super().react(dialogue, seed)


@pytest.mark.parametrize("slots", [1, 3, None])
def test_a_failed_call_of_either_side_ends_its_own_dialogue(slots: int | None) -> None:
    policy = FailingPolicy({IDS[0]: CallFailed("no reply"), IDS[1]: Unreadable("no text")})
    opening: dict[str, BaseException] = {IDS[2]: CallFailed("no opening"), IDS[3]: Unreadable("no words")}
    user = FailingUser(opening, {IDS[4]: Unreadable("no number")})
    ended: list[int] = []
    dialogues = play(PROFILES, policy, user, SAGE, slots=slots, on_end=ended.append)
    error, unreadable = StopReason.ERROR, StopReason.UNREADABLE
    assert [d.stop for d in dialogues] == [error, unreadable, error, unreadable, unreadable, StopReason.TURN_LIMIT]
    assert [d.error for d in dialogues] == ["no reply", "no text", "no opening", "no words", "no number", ""]
    assert [len(d.turns) for d in dialogues] == [1, 1, 0, 0, 2, 3]
    assert ended == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "error", [RlverError("no such endpoint"), ValueError("a bug"), KeyboardInterrupt()], ids=["rlver", "bug", "ctrl-c"]
)
@pytest.mark.parametrize("side", ["policy", "opening", "reaction"])
@pytest.mark.parametrize("slots", [1, 2, None])
def test_any_other_error_ends_the_run_as_it_is(error: BaseException, side: str, slots: int | None) -> None:
    """The first error comes out unwrapped, dialogues at work are cancelled, and connections are closed."""
    errors = {IDS[0]: error, IDS[1]: error}
    policy = FailingPolicy(errors if side == "policy" else {})
    user = FailingUser(errors if side == "opening" else {}, errors if side == "reaction" else {})
    with pytest.raises(type(error)) as caught:
        play(PROFILES, policy, user, SAGE, slots=slots)
    assert caught.value is error and not isinstance(caught.value, BaseExceptionGroup)
    assert policy.closed == user.closed == 1
    assert len(user.order) < 6


def test_an_error_cancels_the_dialogues_at_work() -> None:
    cancelled: list[str] = []

    class Waiting(FailingUser):
        async def wait(self, dialogue: Dialogue) -> None:
            if dialogue.profile.id != IDS[0]:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    cancelled.append(dialogue.profile.id)
                    raise

    with pytest.raises(RlverError, match="mine"):
        play(PROFILES, Policy(), Waiting({}, {IDS[0]: RlverError("mine")}), SAGE)
    assert sorted(cancelled) == sorted(IDS[1:])


def test_a_cancelled_run_cancels_its_dialogues() -> None:
    async def service() -> None:
        user, policy = User(), Policy(60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(play_async(PROFILES, policy, user, SAGE), 0.05)
        assert len(user.active) == 6 and len(asyncio.all_tasks()) == 1

    asyncio.run(service())


def test_connections_of_both_sides_are_closed_once() -> None:
    policy, user, other = Policy(), User(), User()
    play(PROFILES[:4], policy, [user, other, user, other], SAGE)
    assert (policy.closed, user.closed, other.closed) == (1, 1, 1)

    async def service() -> None:
        await play_async(PROFILES[:1], policy, user, SAGE)
        assert (policy.closed, user.closed) == (1, 1), "connections of a running loop belong to the caller"
        await closing(play_async(PROFILES[:1], policy, user, SAGE), policy, user, user)

    asyncio.run(service())
    assert (policy.closed, user.closed) == (2, 2)


@pytest.mark.parametrize("think", [False, True], ids=["plain", "think"])
def test_a_reply_without_the_format_ends_the_dialogue_unjudged(think: bool) -> None:
    policy = Policy()
    policy.think = think
    dialogues = play(PROFILES[:2], policy, User(), SAGE)
    assert {dialogue.stop for dialogue in dialogues} == {StopReason.BAD_FORMAT if think else StopReason.TURN_LIMIT}
    assert all(dialogue.think is think for dialogue in dialogues)


def end_by_reaction(dialogue: Dialogue) -> None:
    dialogue.reply("I see.")
    dialogue.react(Reaction(change=0, utterance="Goodbye."))


@pytest.mark.parametrize(
    "end",
    [end_by_reaction, lambda dialogue: dialogue.reply("<think>broken"), lambda dialogue: dialogue.fail("no answer")],
    ids=["reaction", "format", "failure"],
)
def test_callbacks_are_called_once_at_the_end(end: Callable[[Dialogue], Any]) -> None:
    dialogue, calls = Dialogue(PROFILES[0], SAGE), list[str]()
    dialogue.begin("Hello.")
    dialogue.reply("I see.")
    dialogue.react(Reaction(change=0, utterance="Well."))
    for name in ("first", "second"):
        dialogue.on_end(lambda name=name: calls.append(f"{name} {dialogue.stop}"))  # type: ignore[misc]
    assert calls == []
    end(dialogue)
    stop = dialogue.stop
    assert calls == [f"first {stop}", f"second {stop}"]
    dialogue.fail("once more")
    assert len(calls) == 2


def test_nothing_of_a_run_stays_in_memory() -> None:
    """The driver and the human policy, which numbers its dialogues, keep no dialogue alive."""
    policy = HumanPolicy(Console(file=open(os.devnull, "w", encoding="utf-8")))  # noqa: SIM115

    async def leave() -> None:
        with patched_input(lambda: "I see."):
            dialogue = Dialogue(PROFILES[0], SAGE)
            dialogue.begin("Hello.")
            await policy.reply(dialogue, 1)
            references.append(weakref.ref(dialogue))

    references: list[weakref.ref[Dialogue]] = []
    run(leave())
    references += [weakref.ref(dialogue) for dialogue in play(PROFILES, Policy(), User(), SAGE)]
    gc.collect()
    assert len(references) == 7 and all(reference() is None for reference in references)


# ---------------------------------------------------------------- Ctrl-C


@contextmanager
def patched_input(answer: Callable[[], str]) -> Iterator[None]:
    """Let `answer` be asked where a person would type a line."""
    original = Console.input
    Console.input = lambda self, *args, **options: answer()  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Console.input = original  # type: ignore[method-assign]


@pytest.mark.parametrize("who", ["policy", "user"])
@pytest.mark.parametrize("slots", [1, 2])
def test_ctrl_c_at_a_prompt_interrupts_at_once(who: str, slots: int, caplog: pytest.LogCaptureFixture) -> None:
    """An event loop would only note the signal and go on after the line is typed. Nothing is reported as lost."""
    before = signal.getsignal(signal.SIGINT)
    prompts = 0

    def press() -> str:
        nonlocal prompts
        prompts += 1
        if prompts == 2:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the prompt went on")
        return "0"

    console = Console(file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sides = (HumanPolicy(console), User()) if who == "policy" else (Policy(), HumanUser(console))
    with patched_input(press), pytest.raises(KeyboardInterrupt):
        play(PROFILES, *sides, SAGE, slots=slots)
    gc.collect()
    assert not caplog.records
    assert prompts == 2 and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("running", [False, True], ids=["script", "notebook"])
def test_ctrl_c_ends_a_run_that_waits(running: bool) -> None:
    """In a notebook the dialogues run in another thread, which must not go on without its caller."""
    cancelled: list[str] = []
    main = threading.main_thread().ident
    assert main is not None

    class Waiting(User):
        async def wait(self, dialogue: Dialogue) -> None:
            if dialogue.profile.id == IDS[0]:
                await asyncio.sleep(0.1)
                signal.pthread_kill(main, signal.SIGINT)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(dialogue.profile.id)
                raise

    async def notebook() -> None:
        play(PROFILES, policy, user, SAGE)

    policy, user, start = Policy(), Waiting(), time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()  # like a notebook's, it does not handle the signal itself
    try:
        with pytest.raises(KeyboardInterrupt):
            if running:
                loop.run_until_complete(notebook())
            else:
                play(PROFILES, policy, user, SAGE)
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 10
    assert sorted(cancelled) == sorted(IDS) and user.closed == policy.closed == 1


def test_ctrl_c_in_a_chat_shows_what_the_user_wanted() -> None:
    """The real command in a real terminal."""
    command = [sys.executable, "-m", "rlver", "chat", "--profile", "PROFILE", "--seed", "1"]
    from rlver.stories import benchmark_profiles

    profile = benchmark_profiles("en")[0]
    command[command.index("PROFILE")] = profile.id
    terminal, inside = pty.openpty()
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TERM": "dumb", "COLUMNS": "200"}
    process = subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
        preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(inside)
    try:
        shown = read_until(terminal, "(1/9)")
        os.write(terminal, b"\x03")
        shown = read_until(terminal, profile.intention.meaning)
        assert process.wait(20) == 0 and "Traceback" not in shown
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def own_terminal() -> None:
    """Make the terminal on standard input the one whose Ctrl-C reaches this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    """What a terminal shows up to a text."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                shown += os.read(terminal, 65536).decode("utf-8", "replace")
            except OSError:  # the process has ended
                break
    assert text in shown, shown
    return shown
