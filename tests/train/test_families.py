"""One training step of models of other families: sampler and trainer agree, and the ids are checked once a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import make_model, make_tokenizer
from toys import Toy, algos, configure, quick, save
from transformers import GenerationConfig

from rlver.core.errors import RlverError
from rlver.train.runs.training_run import run
from rlver.train.trainer import Trainer


@algos
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma2", "mistral"])
def test_sampler_and_trainer_agree(name: str, algo: Any) -> None:
    tokenizer = make_tokenizer(name)
    model = make_model(name, tokenizer)
    trainer = Trainer(configure(algo=algo, lr=1e-3), model, tokenizer, Toy())
    before = next(model.parameters()).detach().clone()
    metrics, dialogues = trainer.step(0)
    assert metrics["logprob_gap"] < 1e-4
    assert max(len(dialogue.turns) for dialogue in dialogues) >= 3
    assert not before.equal(next(model.parameters()))


def test_the_ids_of_dialogues_are_checked_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("qwen3")
    trainer = Trainer(configure(), make_model("qwen3", tokenizer), tokenizer, Toy())
    calls: list[str] = []
    opening = trainer.policy.chat.opening
    monkeypatch.setattr(trainer.policy.chat, "opening", lambda words: calls.append(words) or opening(words))
    _, dialogues = trainer.step(0)
    opened = len(calls)
    assert opened == 2 * len(dialogues), "once to be sampled, once to be checked"
    trainer.step(1)
    assert len(calls) == opened + len(dialogues)


def test_dialogues_whose_ids_are_not_what_was_sampled_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("mistral")
    trainer = Trainer(configure(), make_model("mistral", tokenizer), tokenizer, Toy())
    reply = trainer.policy.reply

    async def careless(dialogue: Any, seed: int) -> Any:
        answer = await reply(dialogue, seed)
        answer.tokens.prompt_ids[0] += 1
        return answer

    monkeypatch.setattr(trainer.policy, "reply", careless)
    with pytest.raises(RlverError, match=r"some/mistral: .*, turn 1 of a dialogue was not sampled after"):
        trainer.step(0)


def test_a_saved_policy_ends_where_its_template_closes(tmp_path: Path) -> None:
    """Even if its own settings know only the end of the text."""
    tokenizer = make_tokenizer("llama3")
    model = make_model("llama3", tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    folder = save(tokenizer, model, tmp_path / "base")
    trained = run(quick(folder, steps=1), folder, tmp_path / "run")
    closing = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert closing != tokenizer.eos_token_id
    assert {closing, tokenizer.eos_token_id} <= set(GenerationConfig.from_pretrained(trained).eos_token_id)
