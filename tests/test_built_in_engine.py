"""The built-in engine under the driver: what is sampled, which dialogue waits for which, and what is kept."""

from __future__ import annotations

import asyncio
import copy
import gc
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_toys import PATIENT, WORDS, Toy, check_logprobs, policy, profiles, records, sampled_ids

from rlver.core.dialogue import Dialogue, Opening, Reaction, Reply, StopReason, TokenRecord
from rlver.core.errors import CallFailed, Unreadable
from rlver.inference.engines.base import Sampling
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.inference.kv_cache import RaggedCache
from rlver.inference.sampler import Sampler
from rlver.policies.local import LocalPolicy
from rlver.rollout import for_each, play, play_async, run

COUNT = 9
SEEDS = list(range(COUNT))


def rollout(who: LocalPolicy, user: Any, **options: Any) -> list[Dialogue]:
    return play(profiles(COUNT), who, user, PATIENT, seed=1, user_seeds=SEEDS, policy_seeds=SEEDS, **options)


def turns(dialogues: Sequence[Dialogue]) -> list[Any]:
    """All turns of all dialogues, token records included."""
    return [dialogue.turns for dialogue in dialogues]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows after each request for room in a cache."""
    numbers: list[int] = []
    reserve = RaggedCache.reserve

    def watched(self: RaggedCache, rows: int, slots: int) -> None:
        reserve(self, rows, slots)
        numbers.append(self.rows)

    monkeypatch.setattr(RaggedCache, "reserve", watched)
    return numbers


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_replies_are_those_of_plain_forward_passes(model: Any, tokenizer: Any, temperature: float) -> None:
    who = policy(model, tokenizer, temperature=temperature)
    dialogues = rollout(who, Toy())
    assert {len(dialogue.turns) for dialogue in dialogues} >= {2, 3, 4, 5}
    assert len({len(ids) for replies in sampled_ids(dialogues) for ids in replies}) > 4
    check_logprobs(model, dialogues, temperature)
    for dialogue, replies in zip(dialogues, sampled_ids(dialogues), strict=True):
        assert [turn.raw for turn in dialogue.turns] == [who.chat.decode(ids) for ids in replies]


@pytest.mark.parametrize("others", [0, 3], ids=["groups", "and-some-alone"])
def test_an_opening_is_encoded_once_for_all_dialogues_that_begin_with_it(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    fed: list[int] = []
    feed = Sampler.feed

    def watched(self: Sampler, rows: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> Any:
        fed.append(sum(map(len, chunks)))
        return feed(self, rows, starts, chunks)

    who = policy(model, tokenizer)
    monkeypatch.setattr(Sampler, "feed", watched)
    one, other, *rest = profiles(2 + others)
    # The dialogues of a group do not stand together, and have different rows of the cache.
    dialogues = play([one, other, *rest, one, other, other], who, Toy(), PATIENT, seed=1)
    heads = [records(dialogue)[0].prompt_ids for dialogue in dialogues]
    system = next(i for i, ids in enumerate(zip(*heads, strict=False)) if len(set(ids)) > 1)
    alone = [len(heads[i]) - 1 - system for i in range(2 + others)]
    assert fed[:3] == [system, sum(alone), len(heads)]
    check_logprobs(model, dialogues)
    assert len({tuple(replies[0]) for replies in sampled_ids(dialogues[-2:])}) == 2


def test_policies_that_share_an_engine_are_sampled_together(model: Any, tokenizer: Any) -> None:
    """Two batches at once, such as training and validation, give what each gives alone."""
    who = policy(model, tokenizer)
    other = policy(model, tokenizer, engine=who.engine)

    async def both() -> list[list[Dialogue]]:
        seeds = {"user_seeds": SEEDS, "policy_seeds": SEEDS}
        batches = (play_async(profiles(COUNT), each, Toy(), PATIENT, **seeds) for each in (who, other))
        return list(await asyncio.gather(*batches))

    alone = sampled_ids(rollout(policy(model, tokenizer), Toy()))
    for dialogues in run(both()):
        assert sampled_ids(dialogues) == alone
        check_logprobs(model, dialogues)
    left_open = begun(other)
    run(other.reply(left_open, 1))
    with pytest.raises(ValueError, match="1 conversations are open"):
        run(who.update_weights())


def test_slots_change_no_text_and_bound_the_cache(model: Any, tokenizer: Any, rows: list[int]) -> None:
    whole = rollout(policy(model, tokenizer), Toy())
    for slots in (1, 3, COUNT):
        who, ended = policy(model, tokenizer), list[int]()
        rows.clear()
        dialogues = rollout(who, Toy(), slots=slots, on_end=ended.append)
        assert max(rows) == slots
        assert ended == list(range(1, COUNT + 1))
        assert sampled_ids(dialogues) == sampled_ids(whole)
        check_logprobs(model, dialogues)
        for dialogue, other in zip(dialogues, whole, strict=True):
            for mine, its in zip(records(dialogue), records(other), strict=True):
                assert mine.prompt_ids == its.prompt_ids
                assert mine.logprobs == pytest.approx(its.logprobs, abs=1e-4)


def test_the_same_seeds_give_the_same_schedule(model: Any, tokenizer: Any) -> None:
    who, other = policy(model, tokenizer), policy(model, tokenizer)
    for _ in range(2):
        before = who.engine.steps, other.engine.steps
        assert turns(rollout(who, Toy(), slots=4)) == turns(rollout(other, Toy(), slots=4))
        assert who.engine.steps - before[0] == other.engine.steps - before[1]


def test_a_full_batch_takes_fewer_steps(model: Any, tokenizer: Any) -> None:
    """Dialogues in lockstep wait for the longest reply of every round; refilled slots do not."""
    who = policy(model, tokenizer)
    lengths = [[len(ids) for ids in replies] for replies in sampled_ids(rollout(who, Toy(), slots=3))]
    lockstep = 0
    for first in range(0, COUNT, 3):
        group = lengths[first : first + 3]
        lockstep += sum(max(row[turn] for row in group if turn < len(row)) for turn in range(max(map(len, group))))
    assert who.engine.steps < 0.9 * lockstep


def is_empty(engine: BuiltInEngine) -> bool:
    """Whether an engine holds no conversation and no cache."""
    return not (engine._conversations or engine._rows._rows or engine._sampler.cache._stores)


def test_nothing_is_kept_after_a_batch(model: Any, tokenizer: Any) -> None:
    who = policy(model, tokenizer)
    for _ in range(2):
        dialogues = rollout(who, Toy())
        assert is_empty(who.engine)
    assert all(dialogue.stop for dialogue in dialogues)


def test_an_abandoned_dialogue_frees_its_row(model: Any, tokenizer: Any) -> None:
    """A caller may drop a dialogue before its end, and the policy must not keep the dialogue alive."""
    who = policy(model, tokenizer)

    def abandon() -> weakref.ref[Dialogue]:
        dialogue = Dialogue(profiles(1)[0], PATIENT)
        dialogue.begin("Why?")
        dialogue.reply(run(who.reply(dialogue, 1)))
        assert len(who.engine._conversations) == 1 and not is_empty(who.engine)
        return weakref.ref(dialogue)

    reference = abandon()
    gc.collect()
    assert reference() is None and is_empty(who.engine)


def test_an_ended_dialogue_frees_its_row_at_once(model: Any, tokenizer: Any) -> None:
    """Its row is free although the caller still holds the dialogue, and others keep theirs."""
    who = policy(model, tokenizer)
    first, second = (Dialogue(profile, PATIENT) for profile in profiles(2))
    for dialogue in (first, second):
        dialogue.begin("Why?")
        dialogue.reply(run(who.reply(dialogue, 1)))
    first.react(Reaction(change=0, utterance="Goodbye."))
    assert first.stop is StopReason.FAREWELL and len(who.engine._conversations) == 1
    second.react(Reaction(change=0, utterance="And then?"))
    second.reply(run(who.reply(second, 1)))
    check_logprobs(model, [first, second])
    second.fail("enough")
    assert is_empty(who.engine)


def test_new_weights_are_sampled_from(model: Any, tokenizer: Any) -> None:
    mine = copy.deepcopy(model)
    who = policy(mine, tokenizer)
    first = sampled_ids(rollout(who, Toy()))
    with torch.no_grad():
        mine.lm_head.weight += 0.3 * torch.randn_like(mine.lm_head.weight)
        mine.model.layers[0].mlp.up_proj.weight *= 1.5
    run(who.update_weights())
    dialogues = rollout(who, Toy())
    assert sampled_ids(dialogues) != first
    check_logprobs(mine, dialogues)


def begun(who: LocalPolicy, *replies: str) -> Dialogue:
    """A dialogue whose first replies come from elsewhere, and which waits for the next one."""
    dialogue = Dialogue(profiles(1)[0], PATIENT, who.think)
    dialogue.begin("Why?")
    for reply, utterance in zip(replies, WORDS, strict=False):
        assert dialogue.reply(reply)
        dialogue.react(Reaction(change=0, utterance=utterance))
    return dialogue


def go_on(dialogue: Dialogue, reply: Reply, utterance: str = "And then?") -> TokenRecord:
    """Take a reply and the user's reaction. Returns how the reply was sampled."""
    assert dialogue.reply(reply) and reply.tokens is not None
    dialogue.react(Reaction(change=0, utterance=utterance))
    return reply.tokens


def test_new_weights_are_sampled_from_although_a_dialogue_is_open(model: Any, tokenizer: Any) -> None:
    """The rows of an open dialogue belong to the old weights, so neither it nor a new dialogue may go on from them."""
    mine = copy.deepcopy(model)
    who = policy(mine, tokenizer)
    left_open = begun(who)
    first = go_on(left_open, run(who.reply(left_open, 1)))
    with torch.no_grad():
        mine.model.layers[0].mlp.up_proj.weight *= 1.5
    run(who.update_weights())
    check_logprobs(mine, rollout(who, Toy()))
    second = go_on(left_open, run(who.reply(left_open, 1)))
    assert second.prompt_ids[: len(first.prompt_ids + first.token_ids)] == first.prompt_ids + first.token_ids
    left_open.turns[0].tokens = None  # its log-probabilities are those of the old weights
    check_logprobs(mine, [left_open])


@pytest.mark.parametrize("think", [False, True], ids=["plain", "think"])
def test_a_dialogue_that_others_began_is_continued(model: Any, tokenizer: Any, think: bool) -> None:
    """Earlier replies without token records are read as text, then the ids only grow."""
    who = policy(model, tokenizer, think=think)
    replies = ["I see.", "Tell me more."]
    dialogue = begun(who, *(f"<think>Hm.</think>{reply}" if think else reply for reply in replies))
    chat, expected = who.chat, who.chat.opening("Why?")
    for reply, utterance in zip(replies, WORDS, strict=False):
        expected += [*chat.reply(reply), *chat.turn(utterance)]
    for turn in range(2):
        reply = run(who.reply(dialogue, 1))
        text = f"<think>So.</think>Reply {turn}." if think else reply.raw
        record = go_on(dialogue, Reply.parse(text, think, reply.tokens))
        assert record.context_ids == expected
        expected += chat.reply(f"Reply {turn}.") if think else chat.closed(record.token_ids)
        expected += chat.turn("And then?")
    check_logprobs(model, [dialogue])


def test_two_policies_take_turns_in_one_dialogue(model: Any, tokenizer: Any) -> None:
    """Each reads the other's replies as text, and its own as the ids that it sampled."""
    one, other = policy(model, tokenizer), policy(model, tokenizer)
    dialogue = begun(one)
    expected = {who: who.chat.opening("Why?") for who in (one, other)}
    for turn, who in enumerate([one, one, other, one, other]):
        reply = run(who.reply(dialogue, turn))
        record = go_on(dialogue, reply, WORDS[turn % 4])
        assert record.context_ids == expected[who]
        for reader, ids in expected.items():
            ids += reader.chat.closed(record.token_ids) if reader is who else reader.chat.reply(reply.text)
            ids += reader.chat.turn(WORDS[turn % 4])
    check_logprobs(model, [dialogue])


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_the_best_of_several_replies_is_taken(model: Any, tokenizer: Any, choice: int) -> None:
    """The engine holds the last reply that it sampled, although the dialogue may go on with another one."""
    who = policy(model, tokenizer)
    dialogue = begun(who)
    expected = who.chat.opening("Why?")
    for turn in range(3):
        replies = [run(who.reply(dialogue, 10 * turn + k)) for k in range(3)]
        assert len({reply.raw for reply in replies}) > 1
        assert all(reply.tokens is not None and reply.tokens.context_ids == expected for reply in replies)
        record = go_on(dialogue, replies[choice])
        expected += [*who.chat.closed(record.token_ids), *who.chat.turn("And then?")]
    check_logprobs(model, [dialogue])


def test_one_dialogue_gets_one_reply_at_a_time(model: Any, tokenizer: Any) -> None:
    who = policy(model, tokenizer)
    dialogue = begun(who)

    async def at_once() -> list[Reply | BaseException]:
        return await asyncio.gather(*(who.reply(dialogue, seed) for seed in range(2)), return_exceptions=True)

    reply, error = run(at_once())
    assert isinstance(reply, Reply) and isinstance(error, ValueError) and "after it" in str(error)
    go_on(dialogue, reply)
    go_on(dialogue, run(who.reply(dialogue, 1)))
    check_logprobs(model, [dialogue])


def test_a_failed_reply_can_be_asked_for_again(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for think in (False, True):
        who = policy(model, tokenizer, think=think)
        dialogue = begun(who)
        for turn in range(2):
            with monkeypatch.context() as patch:
                patch.setattr("rlver.inference.engines.built_in.choose", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    run(who.reply(dialogue, turn))
            reply = run(who.reply(dialogue, turn))
            go_on(dialogue, Reply.parse("<think>So.</think>Yes." if think else reply.raw, think, reply.tokens))
        check_logprobs(model, [dialogue])


def test_an_event_loop_may_be_running(model: Any, tokenizer: Any) -> None:
    """A script, a notebook that calls `play`, and a service that awaits `play_async` get the same dialogues."""

    async def notebook() -> list[Dialogue]:
        return rollout(policy(model, tokenizer), Toy())

    async def service() -> list[Dialogue]:
        return await play_async(
            profiles(COUNT), policy(model, tokenizer), Toy(), PATIENT, user_seeds=SEEDS, policy_seeds=SEEDS
        )

    expected = turns(rollout(policy(model, tokenizer), Toy()))
    assert turns(asyncio.run(notebook())) == turns(asyncio.run(service())) == expected


class Slow(Toy):
    """Users behind an endpoint. The one with seed 0 answers when all other dialogues are over."""

    def __init__(self) -> None:
        self.alone = asyncio.Event()
        self.order: list[int] = []

    def on_end(self, ended: int) -> None:
        if ended == COUNT - 1:
            self.alone.set()

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        await asyncio.sleep(0.001)
        return await super().open(dialogue, seed)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        await (self.alone.wait() if seed == 0 else asyncio.sleep(0.001 * (1 + seed % 3)))
        self.order.append(seed)
        return await super().react(dialogue, seed)


@pytest.mark.parametrize("slots", [None, 2, 5])
def test_no_dialogue_waits_for_another_ones_user(model: Any, tokenizer: Any, slots: int | None) -> None:
    user = Slow()
    dialogues = rollout(policy(model, tokenizer), user, slots=slots, on_end=user.on_end)
    assert user.order.index(0) == len(user.order) - len(dialogues[0].turns)
    assert len(dialogues[0].turns) > 1
    assert sampled_ids(dialogues) == sampled_ids(rollout(policy(model, tokenizer), Toy()))
    check_logprobs(model, dialogues)


def test_failures_of_users_end_their_own_dialogues(model: Any, tokenizer: Any) -> None:
    class Failing(Toy):
        delay = 0.0

        async def open(self, dialogue: Dialogue, seed: int) -> Opening:
            await asyncio.sleep(self.delay)
            if seed == 1:
                raise CallFailed("no opening")
            return await super().open(dialogue, seed)

        async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
            await asyncio.sleep(self.delay)
            if seed == 2 and len(dialogue.turns) == 2:
                raise Unreadable("what?")
            return await super().react(dialogue, seed)

    for delay in (0.0, 0.001):
        who, user = policy(model, tokenizer), Failing()
        user.delay = delay
        dialogues = rollout(who, user, slots=4)
        assert [d.stop for d in dialogues[1:3]] == [StopReason.ERROR, StopReason.UNREADABLE]
        assert [d.error for d in dialogues[1:3]] == ["no opening", "what?"] and len(dialogues[2].turns) == 2
        assert all(d.stop and d.stop.scored for d in dialogues[:1] + dialogues[3:])
        assert is_empty(who.engine)
        check_logprobs(model, dialogues)


def test_a_deadline_leaves_nothing_behind(model: Any, tokenizer: Any) -> None:
    class Late(Toy):
        async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
            await asyncio.sleep(60 if seed < 3 else 0)
            return await super().react(dialogue, seed)

    who = policy(model, tokenizer)
    dialogues = rollout(who, Late(), deadline=3.0)
    assert [d.stop is StopReason.ERROR for d in dialogues] == [seed < 3 for seed in SEEDS]
    assert is_empty(who.engine) and not who.engine._waiting and not who.engine._active
    assert turns(rollout(who, Toy())) == turns(rollout(policy(model, tokenizer), Toy()))


def test_a_deadline_while_a_reply_is_sampled_ends_that_dialogue_alone(model: Any, tokenizer: Any) -> None:
    """The row of the cancelled reply is free for the next dialogue, and the other replies are not disturbed."""

    async def lead() -> list[Dialogue]:
        dialogues = [Dialogue(profile, PATIENT) for profile in profiles(3)]
        for dialogue in dialogues:
            dialogue.begin("Why?")
        tasks = [asyncio.create_task(who.reply(dialogue, 5 + i)) for i, dialogue in enumerate(dialogues)]
        while who.engine.steps < 2:
            await asyncio.sleep(0)
        tasks[1].cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(replies[1], asyncio.CancelledError)
        dialogues[1].fail("late")
        for i in (0, 2):
            dialogues[i].reply(replies[i])  # type: ignore[arg-type]
        return dialogues

    who = policy(model, tokenizer)
    model_ends, who.chat.stops = who.chat.stops, frozenset()  # all replies are 12 tokens long
    assert model_ends
    dialogues = run(lead())
    assert [len(ids) for replies in sampled_ids(dialogues) for ids in replies] == [12, 12]
    assert len(who.engine._conversations) == 2 and not who.engine._waiting and not who.engine._active
    check_logprobs(model, dialogues)


def test_an_error_of_the_engine_ends_the_run(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    who = policy(model, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("rlver.inference.engines.built_in.choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rollout(who, Toy())
    dialogues = rollout(who, Toy())
    assert all(dialogue.stop for dialogue in dialogues)
    check_logprobs(model, dialogues)


@pytest.mark.parametrize("workers", [3, 8, 16])
def test_conversations_come_and_go_in_any_order(model: Any, tokenizer: Any, workers: int, rows: list[int]) -> None:
    """Shared beginnings, rewinding, ends, pauses and replies of any length, against plain forward passes."""
    engine = BuiltInEngine(model)
    heads = [[5, *random.Random(k).choices(range(len(tokenizer)), k=60)] for k in range(2)]

    async def work(number: int) -> None:
        rng = random.Random(number)
        for round_ in range(4):
            conversation, held = engine.open(), list[int]()
            chunk = rng.choice(heads)[: rng.randint(20, 61)]
            for turn in range(rng.randint(1, 4)):
                chunk = [*chunk, *rng.choices(range(len(tokenizer)), k=rng.randint(1, 30))]
                sampling = Sampling(0.8, rng.randint(1, 25), frozenset([tokenizer.eos_token_id, 7]))
                ids, logprobs = await engine.reply(conversation, chunk, 1000 * number + 10 * round_ + turn, sampling)
                held += chunk
                check(held, ids, logprobs)
                assert not sampling.stop & set(ids[:-1])
                assert ids[-1] in sampling.stop or len(ids) == sampling.max_tokens
                held, chunk = held + ids[:-1], ids[-1:]
                if rng.random() < 0.4:
                    del held[rng.randint(1, len(held) - 1) :]
                    engine.rewind(conversation, len(held))
                for _ in range(rng.choice([0, 0, 3, 30])):
                    await asyncio.sleep(0)
            engine.end(conversation)

    def check(context: Sequence[int], ids: Sequence[int], logprobs: Sequence[float]) -> None:
        whole = torch.tensor([[*context, *ids]])
        with torch.no_grad():
            logits = model(input_ids=whole, use_cache=False).logits[0, len(context) - 1 : -1]
        expected = torch.log_softmax(logits / 0.8, -1).gather(1, whole[0, len(context) :, None])[:, 0]
        assert torch.allclose(torch.tensor(logprobs), expected, atol=2e-4)

    run(for_each(range(workers), work))
    assert max(rows) <= workers * 5 // 4
    engine.clear()
    assert is_empty(engine)


def test_replies_that_are_sampled_together_have_one_temperature(model: Any, tokenizer: Any) -> None:
    engine = BuiltInEngine(model)

    async def both() -> None:
        replies = (engine.reply(engine.open(), [1], 0, Sampling(t, 4, frozenset([0]))) for t in (1.0, 0.5))
        await asyncio.gather(*replies)

    with pytest.raises(ValueError, match="same temperature"):
        asyncio.run(both())
