"""Functions as policies, and the objects that stand for policies and users."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply, StopReason
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.core.profile import Profile
from rlver.policies.callable import CallablePolicy
from rlver.policies.load import as_policy
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import play
from rlver.stories.generate import generate
from rlver.users.embedded.user import EmbeddedUser
from rlver.users.load import as_user

PROFILES: list[Profile] = generate("en", "train", 6, 0)


def lead(policy: CallablePolicy, **options: Any) -> list[Dialogue]:
    return play(PROFILES, policy, EmbeddedUser("en"), PRESETS["sage"], seed=1, **options)


def kind(messages: list[dict[str, str]]) -> str:
    return f"That must be hard. You said: {messages[-1]['content'].split('.')[0]}."


def test_a_function_gets_the_messages_of_its_dialogue() -> None:
    calls: list[list[dict[str, str]]] = []

    def note(messages: list[dict[str, str]]) -> str:
        calls.append(messages)
        return kind(messages)

    dialogues = lead(CallablePolicy(note))
    assert len(calls) == sum(len(dialogue.turns) for dialogue in dialogues)
    for messages in calls:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    for dialogue in dialogues:
        expected = [message.model_dump() for message in dialogue.messages()]
        last = expected[: 2 * len(dialogue.turns) - 1]
        assert last in calls and [turn.raw for turn in dialogue.turns] == [m["content"] for m in expected[1::2]]


def test_sync_functions_are_called_one_at_a_time_and_async_ones_together() -> None:
    active = most = 0

    def enter() -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)

    def sync(messages: list[dict[str, str]]) -> str:
        nonlocal active
        enter()
        active -= 1
        return kind(messages)

    async def concurrent(messages: list[dict[str, str]]) -> str:
        nonlocal active
        enter()
        await asyncio.sleep(0.001)
        active -= 1
        return kind(messages)

    one = lead(CallablePolicy(sync))
    assert most == 1
    other = lead(CallablePolicy(concurrent))
    assert most == len(PROFILES)
    assert [d.turns for d in one] == [d.turns for d in other]


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
def test_an_exception_ends_one_dialogue(later: bool) -> None:
    failing = PROFILES[2].story.facts[0].say

    def fail(messages: list[dict[str, str]]) -> str:
        if failing in messages[0]["content"] and len(messages) > 1:
            raise OSError("no route to host")
        return kind(messages)

    async def fail_later(messages: list[dict[str, str]]) -> str:
        await asyncio.sleep(0)
        return fail(messages)

    dialogues = lead(CallablePolicy(fail_later if later else fail))
    failed = [dialogue for dialogue in dialogues if dialogue.stop is StopReason.ERROR]
    assert dialogues[2] in failed and len(failed) < len(PROFILES)
    name = "fail_later" if later else "fail"
    assert failed[0].error == f"callable:{name}: the function raised OSError: no route to host"


def test_a_deadline_interrupts_an_async_function() -> None:
    async def slow(messages: list[dict[str, str]]) -> str:
        await asyncio.sleep(60)
        return ""

    assert {dialogue.stop for dialogue in lead(CallablePolicy(slow), deadline=0.05)} == {StopReason.ERROR}


def test_a_return_value_other_than_a_string_ends_the_run() -> None:
    with pytest.raises(RlverError, match=r"^callable:lambda: .* it returned NoneType\.$"):
        lead(CallablePolicy(lambda messages: None))  # type: ignore[arg-type, return-value]


def test_think_mode_separates_thoughts_and_checks_the_format() -> None:
    policy = CallablePolicy(lambda messages: f"<think>Plan.</think>{kind(messages)}", think=True)
    dialogues = lead(policy)
    assert {(turn.thought, turn.reply[:4]) for d in dialogues for turn in d.turns} == {("Plan.", "That")}
    assert {d.stop for d in lead(CallablePolicy(kind, think=True))} == {StopReason.BAD_FORMAT}


def test_names_of_functions() -> None:
    class Model:
        def __call__(self, messages: list[dict[str, str]]) -> str:
            return ""

    def with_style(style: str, messages: list[dict[str, str]]) -> str:
        return style

    specs = [CallablePolicy(f).spec for f in (kind, lambda m: "", Model(), partial(with_style, "brief"))]
    assert specs == ["callable:kind", "callable:lambda", "callable:Model", "callable:partial"]
    assert CallablePolicy(kind, spec="mine").spec == "mine"


class Mine:
    """A policy object."""

    spec, think, prompt_hash = "mine", False, ""

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        return Reply.parse("Hi.", False)


def test_as_policy_accepts_specs_objects_and_functions() -> None:
    assert isinstance(as_policy("scripted:hedge", "en"), ScriptedPolicy)
    mine = Mine()
    assert as_policy(mine, "en") is mine
    assert as_policy(kind, "en", think=True).think

    class Nameless:
        think = False

        async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
            return Reply.parse("Hi.", False)

    with pytest.raises(RlverError, match="needs spec, prompt_hash"):
        as_policy(Nameless(), "en")  # type: ignore[arg-type]
    for wrong in (7, Mine, None, ["scripted:hedge"]):
        with pytest.raises(RlverError, match="a policy is a spec"):
            as_policy(wrong, "en")  # type: ignore[arg-type]


class Clerk:
    """A user object."""

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        return Opening("I need a form.")

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        return Reaction(change=10, utterance="Goodbye.")


def test_as_user_accepts_specs_and_objects() -> None:
    assert as_user("challenging", "en").identity == as_user("embedded", "en", "challenging").identity
    assert as_user("embedded", "zh", phrasing="train").identity.startswith("embedded/vanilla/zh/train@")
    nameless = as_user(Clerk(), "en")  # type: ignore[arg-type]
    assert nameless.identity == "Clerk"
    (dialogue,) = play(PROFILES[:1], CallablePolicy(kind), nameless, PRESETS["sage"])
    assert dialogue.stop is StopReason.FAREWELL

    class Named(Clerk):
        identity = "clerk/1"

    named = Named()
    assert as_user(named, "en") is named

    class Sync:
        def open(self, dialogue: Dialogue, seed: int) -> Opening:
            return Opening("Hi.")

        def react(self, dialogue: Dialogue, seed: int) -> Reaction:
            return Reaction(change=0, utterance="")

    for wrong in (7, Clerk, Sync(), None):
        with pytest.raises(RlverError, match="async methods open and react"):
            as_user(wrong, "en")  # type: ignore[arg-type]
