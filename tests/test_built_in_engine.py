"""The built-in engine and the driver: who waits for whom, what is sampled, and what is kept."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_toys import PATIENT, Toy, check_logprobs, policy, profiles, texts

from rlver.core.dialogue import Dialogue, Opening, Reaction, StopReason
from rlver.core.errors import CallFailed, Unreadable
from rlver.core.profile import Profile
from rlver.inference.engines.base import Sampling
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.inference.kv_cache import RaggedCache
from rlver.inference.sampler import Sampler
from rlver.policies.local import LocalPolicy
from rlver.rollout import play, play_async, run, together

COUNT = 9
SEEDS = list(range(COUNT))


def rollout(who: LocalPolicy, agent: Any, **options: Any) -> list[Dialogue]:
    return play(profiles(COUNT), who, agent, PATIENT, seed=1, user_seeds=SEEDS, policy_seeds=SEEDS, **options)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that caches were asked for."""
    asked: list[int] = []
    reserve = RaggedCache.reserve

    def watched(self: RaggedCache, places: int, slots: int) -> None:
        reserve(self, places, slots)
        asked.append(self.places)

    monkeypatch.setattr(RaggedCache, "reserve", watched)
    return asked


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_replies_are_those_of_plain_forward_passes(model: Any, tokenizer: Any, temperature: float) -> None:
    who = policy(model, tokenizer, temperature=temperature)
    dialogues = rollout(who, Toy())
    assert {len(dialogue.turns) for dialogue in dialogues} >= {2, 3, 4, 5}
    assert len({len(reply.ids) for trace in who.traces for reply in trace.replies}) > 4
    check_logprobs(model, who.traces, temperature)
    for dialogue, trace in zip(dialogues, who.traces, strict=True):
        assert [turn.raw for turn in dialogue.turns] == [who.chat.decode(reply.ids) for reply in trace.replies]


@pytest.mark.parametrize("others", [0, 3], ids=["groups", "and-some-alone"])
def test_an_opening_is_encoded_once_for_all_who_begin_with_it(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    fed: list[int] = []
    feed = Sampler.feed

    def watched(self: Sampler, places: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Any:
        fed.append(sum(map(len, chunks)))
        return feed(self, places, starts, chunks)

    who = policy(model, tokenizer)
    monkeypatch.setattr(Sampler, "feed", watched)
    one, other, *rest = profiles(2 + others)
    # Those of a group do not stand together, and are at different places of the cache.
    play([one, other, *rest, one, other, other], who, Toy(), PATIENT, seed=1)
    heads = [trace.context[: trace.replies[0].start] for trace in who.traces]
    system = next(i for i, ids in enumerate(zip(*heads, strict=False)) if len(set(ids)) > 1)
    alone = [len(heads[i]) - 1 - system for i in range(2 + others)]
    assert fed[:3] == [system, sum(alone), len(heads)]
    check_logprobs(model, who.traces)
    assert len({tuple(trace.replies[0].ids) for trace in who.traces[-2:]}) == 2


def test_a_copy_leads_talks_of_its_own(model: Any, tokenizer: Any) -> None:
    who = policy(model, tokenizer)
    rollout(who, Toy())
    twin = copy.copy(who)
    assert twin.engine is who.engine and not twin.traces and twin._talks is not who._talks
    traces = who.traces
    rollout(twin, Toy())
    assert who.traces is traces and len(twin.traces) == len(traces)


def test_slots_change_no_text_and_bound_the_cache(model: Any, tokenizer: Any, places: list[int]) -> None:
    whole = policy(model, tokenizer)
    rollout(whole, Toy())
    for slots in (1, 3, COUNT):
        who = policy(model, tokenizer)
        places.clear()
        ended: list[int] = []
        rollout(who, Toy(), slots=slots, on_end=ended.append)
        assert max(places) == slots
        assert ended == list(range(1, COUNT + 1))
        assert texts(who.traces) == texts(whole.traces)
        check_logprobs(model, who.traces)
        for trace, other in zip(who.traces, whole.traces, strict=True):
            for mine, its in zip(trace.replies, other.replies, strict=True):
                assert mine.logprobs == pytest.approx(its.logprobs, abs=1e-4)


def test_the_same_seeds_give_the_same_schedule(model: Any, tokenizer: Any) -> None:
    who, other = policy(model, tokenizer), policy(model, tokenizer)
    for _ in range(2):
        before = who.engine.steps, other.engine.steps
        rollout(who, Toy(), slots=4)
        rollout(other, Toy(), slots=4)
        assert who.traces == other.traces
        assert who.engine.steps - before[0] == other.engine.steps - before[1]


def test_a_full_batch_takes_fewer_steps(model: Any, tokenizer: Any) -> None:
    """Dialogues in lockstep wait for the longest reply of every round; refilled slots do not."""
    who = policy(model, tokenizer)
    rollout(who, Toy(), slots=3)
    lengths = [[len(reply.ids) for reply in trace.replies] for trace in who.traces]
    lockstep = 0
    for first in range(0, COUNT, 3):
        group = lengths[first : first + 3]
        lockstep += sum(max(row[turn] for row in group if turn < len(row)) for turn in range(max(map(len, group))))
    assert who.engine.steps < 0.9 * lockstep


def test_nothing_is_kept_after_a_batch(model: Any, tokenizer: Any) -> None:
    who = policy(model, tokenizer)
    for _ in range(2):
        rollout(who, Toy())
        assert not who.engine._talks and not who.engine._seats and not who.engine._sampler.cache._stores


def test_new_weights_are_sampled_from(model: Any, tokenizer: Any) -> None:
    import copy

    mine = copy.deepcopy(model)
    who = policy(mine, tokenizer)
    rollout(who, Toy())
    first = texts(who.traces)
    with torch.no_grad():
        mine.lm_head.weight += 0.3 * torch.randn_like(mine.lm_head.weight)
        mine.model.layers[0].mlp.up_proj.weight *= 1.5
    run(who.update_weights(), who.waits)
    rollout(who, Toy())
    assert texts(who.traces) != first
    check_logprobs(mine, who.traces)


def test_no_event_loop_is_needed_and_one_may_run(model: Any, tokenizer: Any) -> None:
    who = policy(model, tokenizer)
    rollout(who, Toy())

    async def notebook() -> list[Dialogue]:
        return rollout(policy(model, tokenizer), Toy())

    async def service() -> list[Dialogue]:
        return await play_async(
            profiles(COUNT), policy(model, tokenizer), Toy(), PATIENT, user_seeds=SEEDS, policy_seeds=SEEDS
        )

    expected = [[turn.raw for turn in dialogue.turns] for dialogue in rollout(who, Toy())]
    for found in (asyncio.run(notebook()), asyncio.run(service())):
        assert [[turn.raw for turn in dialogue.turns] for dialogue in found] == expected


class Slow(Toy):
    """Users behind an endpoint; the one with seed 0 answers when all other dialogues are over."""

    def __init__(self) -> None:
        self.alone = asyncio.Event()
        self.order: list[int] = []

    def on_end(self, ended: int) -> None:
        if ended == COUNT - 1:
            self.alone.set()

    async def open(self, profile: Profile, seed: int) -> Opening:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return Toy.open(self, profile, seed)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:  # type: ignore[override]
        await (self.alone.wait() if seed == 0 else asyncio.sleep(0.001 * (1 + seed % 3)))
        self.order.append(seed)
        return Toy.react(self, dialogue, seed)


@pytest.mark.parametrize("slots", [None, 2, 5])
def test_a_slow_user_holds_nobody_up(model: Any, tokenizer: Any, slots: int | None) -> None:
    who, agent = policy(model, tokenizer), Slow()
    dialogues = rollout(who, agent, slots=slots, on_end=agent.on_end)
    assert agent.order.index(0) == len(agent.order) - sum(turn.reaction is not None for turn in dialogues[0].turns)
    assert len(dialogues[0].turns) > 1
    at_once = policy(model, tokenizer)
    rollout(at_once, Toy())
    assert texts(who.traces) == texts(at_once.traces)
    check_logprobs(model, who.traces)


def test_failures_of_users_are_values(model: Any, tokenizer: Any) -> None:
    class Failing(Toy):
        def open(self, profile: Profile, seed: int) -> Opening:
            if seed == 1:
                raise CallFailed("no opening")
            return super().open(profile, seed)

        def react(self, dialogue: Dialogue, seed: int) -> Reaction:
            if seed == 2 and len(dialogue.turns) == 2:
                raise Unreadable("what?")
            return super().react(dialogue, seed)

    class FailingLater(Failing):
        async def open(self, profile: Profile, seed: int) -> Opening:  # type: ignore[override]
            await asyncio.sleep(0.001)
            return Failing.open(self, profile, seed)

        async def react(self, dialogue: Dialogue, seed: int) -> Reaction:  # type: ignore[override]
            await asyncio.sleep(0.001)
            return Failing.react(self, dialogue, seed)

    for agent in (Failing(), FailingLater()):
        who = policy(model, tokenizer)
        dialogues = rollout(who, agent, slots=4)
        assert [d.stop for d in dialogues[1:3]] == [StopReason.ERROR, StopReason.UNREADABLE]
        assert [d.error for d in dialogues[1:3]] == ["no opening", "what?"] and len(dialogues[2].turns) == 2
        assert all(d.stop and d.stop.scored for d in dialogues[:1] + dialogues[3:])
        check_logprobs(model, who.traces)


def test_a_deadline_leaves_nothing_behind(model: Any, tokenizer: Any) -> None:
    class Late(Toy):
        async def react(self, dialogue: Dialogue, seed: int) -> Reaction:  # type: ignore[override]
            await asyncio.sleep(60 if seed < 3 else 0)
            return Toy.react(self, dialogue, seed)

    who = policy(model, tokenizer)
    found = asyncio.run(
        play_async(profiles(COUNT), who, Late(), PATIENT, user_seeds=SEEDS, policy_seeds=SEEDS, deadline=3.0)
    )
    assert [d.stop is StopReason.ERROR for d in found] == [seed < 3 for seed in SEEDS]
    again = policy(model, tokenizer)
    assert rollout(who, Toy())[0].turns == rollout(again, Toy())[0].turns
    assert who.traces == again.traces and not who.engine._waiting and not who.engine._working


def test_an_error_of_the_engine_ends_the_run(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    who = policy(model, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("rlver.inference.engines.built_in.choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rollout(who, Toy())
    assert all(dialogue.stop for dialogue in rollout(who, Toy()))


@pytest.mark.parametrize("workers", [3, 8, 16])
def test_conversations_come_and_go_in_any_order(model: Any, tokenizer: Any, workers: int, places: list[int]) -> None:
    """Shared beginnings, rewinding, ends, pauses and replies of any length, against plain forward passes."""
    engine = BuiltInEngine(model)
    heads = [[5, *random.Random(k).choices(range(len(tokenizer)), k=60)] for k in range(2)]

    async def work(number: int) -> None:
        rng = random.Random(number)
        for round_ in range(4):
            talk, held = engine.open(), list[int]()
            chunk = rng.choice(heads)[: rng.randint(20, 61)]
            for turn in range(rng.randint(1, 4)):
                chunk = [*chunk, *rng.choices(range(len(tokenizer)), k=rng.randint(1, 30))]
                sampling = Sampling(0.8, rng.randint(1, 25), frozenset([tokenizer.eos_token_id, 7]))
                ids, logprobs = await engine.reply(talk, chunk, 1000 * number + 10 * round_ + turn, sampling)
                held += chunk
                check(held, ids, logprobs)
                assert not sampling.stop & set(ids[:-1])
                assert ids[-1] in sampling.stop or len(ids) == sampling.max_tokens
                held, chunk = held + ids[:-1], ids[-1:]
                if rng.random() < 0.4:
                    del held[rng.randint(1, len(held) - 1) :]
                    engine.rewind(talk, len(held))
                for _ in range(rng.choice([0, 0, 3, 30])):
                    await asyncio.sleep(0)
            engine.end(talk)

    def check(context: Sequence[int], ids: Sequence[int], logprobs: Sequence[float]) -> None:
        whole = torch.tensor([[*context, *ids]])
        with torch.no_grad():
            logits = model(input_ids=whole, use_cache=False).logits[0, len(context) - 1 : -1]
        expected = torch.log_softmax(logits / 0.8, -1).gather(1, whole[0, len(context) :, None])[:, 0]
        assert torch.allclose(torch.tensor(logprobs), expected, atol=2e-4)

    run(together([work(number) for number in range(workers)], waiting=False), waiting=False)
    assert max(places) <= workers * 5 // 4
    engine.clear()
    assert not engine._seats


def test_what_is_sampled_together_has_one_temperature(model: Any, tokenizer: Any) -> None:
    engine = BuiltInEngine(model)

    async def both() -> None:
        replies = (engine.reply(engine.open(), [1], 0, Sampling(t, 4, frozenset([0]))) for t in (1.0, 0.5))
        await asyncio.gather(*replies)

    with pytest.raises(ValueError, match="same temperature"):
        asyncio.run(both())
