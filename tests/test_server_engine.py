"""The server engine over real sockets, against a server that samples from a real small model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toys import PATIENT, Toy, check_logprobs, policy, profiles, records, sampled_ids
from token_server import TokenServer

from rlver.core.dialogue import Dialogue, Reply, StopReason
from rlver.core.errors import RlverError
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.inference.engines.load import load_engine
from rlver.inference.engines.server import ServerEngine
from rlver.llm import Limits
from rlver.policies.local import LocalPolicy
from rlver.rollout import closing, play, run

LIMITS = Limits(attempts=3, timeout=5.0, longest_wait=0.05, patience=0.5)
COUNT = 4
SEEDS = list(range(COUNT))


def serving(model: Any, tokenizer: Any, server: TokenServer, style: str, weights: Path | None = None) -> LocalPolicy:
    engine = load_engine(f"{style}@{server.url}", model, weights=weights, limits=LIMITS)
    return policy(model, tokenizer, engine=engine, max_tokens=8)


def rollout(who: LocalPolicy, **options: Any) -> list[Dialogue]:
    return play(profiles(COUNT), who, Toy(), PATIENT, seed=1, user_seeds=SEEDS, policy_seeds=SEEDS, **options)


def update(who: LocalPolicy) -> None:
    run(closing(who.update_weights(), who))


@pytest.fixture
def learner(model: Any) -> Any:
    """A model whose weights may change."""
    return copy.deepcopy(model)


class Adapted:
    """What is trained as an adapter: it saves an adapter's files. The server reads whole weights from them."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


@torch.no_grad()
def learn(model: Any) -> None:
    model.lm_head.weight += 0.3 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("style", ["vllm", "vllm-lora", "sglang"])
def test_token_records_are_those_of_the_servers_model(model: Any, tokenizer: Any, style: str) -> None:
    with TokenServer(model) as server:
        who = serving(model, tokenizer, server, style)
        dialogues = rollout(who, slots=3)
        assert all(dialogue.stop and dialogue.stop.scored for dialogue in dialogues)
        assert all(len(records(dialogue)) == len(dialogue.turns) for dialogue in dialogues)
        check_logprobs(model, dialogues)
        assert sampled_ids(rollout(who)) == sampled_ids(dialogues)
        assert not who.engine._conversations


def test_prompts_hold_earlier_replies_without_their_thoughts(model: Any, tokenizer: Any) -> None:
    with TokenServer(model) as server:
        engine = load_engine(f"vllm@{server.url}", model, limits=LIMITS)
        who = LocalPolicy(model, tokenizer, "en", think=True, max_tokens=8, engine=engine)
        dialogue = Dialogue(profiles(1)[0], PATIENT, True)
        dialogue.begin("Why?")

        async def lead() -> None:
            for turn in range(3):
                reply = await who.reply(dialogue, 5)
                assert dialogue.reply(Reply.parse(f"<think>Plan {turn}.</think>Reply {turn}.", True, reply.tokens))
                dialogue.react(await Toy().react(dialogue, 3))

        run(closing(lead(), who))
        prompts = [record.prompt_ids for record in records(dialogue)]
        assert [request["prompt"] for _, request in server.posts] == prompts
        assert "Reply 1." in who.chat.decode(prompts[2]) and "Plan" not in who.chat.decode(prompts[2])
        check_logprobs(model, [dialogue])


@pytest.mark.parametrize("style", ["vllm", "vllm-lora", "sglang"])
def test_after_an_update_the_logprobs_are_those_of_the_new_weights(
    learner: Any, tokenizer: Any, style: str, tmp_path: Path
) -> None:
    with TokenServer(copy.deepcopy(learner)) as server:
        who = serving(learner, tokenizer, server, style, tmp_path)
        who.model = Adapted(learner) if style == "vllm-lora" else learner
        before = sampled_ids(rollout(who))
        (tmp_path / "rlver-of-another-process-7").mkdir()
        for step in (1, 2, 3):
            learn(learner)
            update(who)
            dialogues = rollout(who)
            check_logprobs(learner, dialogues)
            assert len(list(tmp_path.iterdir())) == min(step, 2)
        assert sampled_ids(dialogues) != before
        if style == "vllm-lora":
            assert [name.rpartition("-")[2] for name in server.served] == ["", "3"]


def test_an_update_that_was_not_taken_is_an_error(learner: Any, tokenizer: Any, tmp_path: Path) -> None:
    with TokenServer(learner) as server:
        server.locked = True
        for style, hint in (("vllm", "VLLM_SERVER_DEV_MODE=1"), ("sglang", "no such folder.*SGLang")):
            with pytest.raises(RlverError, match=hint):
                update(serving(learner, tokenizer, server, style, tmp_path))
        lora = serving(learner, tokenizer, server, "vllm-lora", tmp_path)
        with pytest.raises(RlverError, match=r"no adapter \(LoRA\); use vllm or sglang"):
            update(lora)
        lora.model = Adapted(learner)
        with pytest.raises(RlverError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            update(lora)
        with pytest.raises(RlverError, match="no folder for the weights"):
            update(serving(learner, tokenizer, server, "vllm"))


@pytest.mark.parametrize("fault", ["500", "drop"])
def test_faults_that_pass_change_nothing(model: Any, tokenizer: Any, fault: str) -> None:
    with TokenServer(model) as calm, TokenServer(model, faults=[fault], share=0.3) as server:
        who, other = (serving(model, tokenizer, s, "vllm") for s in (server, calm))
        turns, undisturbed = ([dialogue.turns for dialogue in rollout(policy)] for policy in (who, other))
        assert server.calls[fault] and turns == undisturbed
        assert who.engine.llm.tally.retries and not who.engine.llm.tally.failed


@pytest.mark.parametrize("fault", ["500", "drop"])
def test_faults_that_stay_end_dialogues_and_are_counted(model: Any, tokenizer: Any, fault: str) -> None:
    with TokenServer(model, faults=[fault], share=1.0) as server:
        who = serving(model, tokenizer, server, "vllm")
        dialogues = rollout(who)
        assert [dialogue.stop for dialogue in dialogues] == [StopReason.ERROR] * COUNT
        assert all("3 attempts failed" in dialogue.error for dialogue in dialogues)
        assert who.engine.llm.tally.failed == COUNT
        assert all(dialogue.turns == [] for dialogue in dialogues)
        server.share = 0.0
        assert all(dialogue.stop and dialogue.stop.scored for dialogue in rollout(who))


@pytest.mark.parametrize("fault", ["no_ids", "no_logprobs", "unequal"])
def test_the_error_names_what_a_server_lacks(model: Any, tokenizer: Any, fault: str) -> None:
    with TokenServer(model, faults=[fault], share=1.0) as server:
        with pytest.raises(RlverError, match=r"log-probabilities.*Needed: vLLM 0\.10\.2"):
            rollout(serving(model, tokenizer, server, "vllm"))
        with pytest.raises(RlverError, match=r"log-probabilities.*Needed: SGLang"):
            rollout(serving(model, tokenizer, server, "sglang"))


def test_a_server_that_is_not_there_ends_the_run(model: Any, tokenizer: Any) -> None:
    with TokenServer(model) as server:
        who = serving(model, tokenizer, server, "vllm")
    with pytest.raises(RlverError, match="no connection"):
        rollout(who)


def test_engine_specs(model: Any) -> None:
    assert isinstance(load_engine("local", model), BuiltInEngine)
    engine = load_engine("vllm:qwen3@http://127.0.0.1:8000/v1", model)
    assert isinstance(engine, ServerEngine) and engine.style == "vllm"
    for spec in ("vllm", "tgi@http://127.0.0.1:8000", "http://127.0.0.1:8000"):
        with pytest.raises(RlverError, match="use local, or a server as STYLE@URL with STYLE vllm, vllm-lora, sglang"):
            load_engine(spec, model)
    with pytest.raises(RlverError, match="BASE_URL"):
        load_engine("vllm@127.0.0.1:8000", model)
