"""Sampling and training of other architectures: their own plain forward pass gives the same ids and numbers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engine_toys import check_logprobs, records, sampled_ids
from families import make_model, make_tokenizer

from rlver.core.dialogue import Dialogue, Reaction, Reply
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.inference.decoder import make_logits
from rlver.inference.exactness import check_dialogue, check_model
from rlver.inference.model_folder import load_model
from rlver.inference.sampler import Sampler
from rlver.policies.local import LocalPolicy, end_tokens
from rlver.rollout import for_each, run
from rlver.serve.completions import Generator
from rlver.stories.generate import generate
from rlver.train.batch import collate, from_dialogue
from rlver.train.forward import hidden_states

SAID = ["My sister laughed.", "我昨天把钥匙弄丢了，心里很乱。", "Oh no! Why did she say it? It is 5 o'clock.", "Why?"]
TURNS = 3
MODELS = ["qwen2.5", "qwen2-window", "qwen3", "llama3", "gemma2", "gemma3", "mistral", "mistral-unigram"]
"""One family of each architecture."""

families = pytest.mark.parametrize("name", MODELS)
modes = pytest.mark.parametrize("think", [False, True], ids=["plain", "think"])


@pytest.fixture(scope="module")
def bodies() -> dict[str, tuple[Any, Any]]:
    """Model and tokenizer of each family, with a second token that ends a reply."""
    made = {}
    for name in MODELS:
        tokenizer = make_tokenizer(name)
        model = make_model(name, tokenizer)
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, 300, 301, 302]
        model.generation_config.pad_token_id = None
        made[name] = model, tokenizer
    return made


def converse(policy: LocalPolicy, count: int = 3) -> list[Dialogue]:
    """Lead dialogues of different lengths. With thinking they hold other words, as random tokens keep no format."""
    profile = generate("en", "train", 1)[0]
    dialogues = [Dialogue(profile, PRESETS["sage"], policy.think) for _ in range(count)]

    async def lead(index: int) -> None:
        dialogue = dialogues[index]
        dialogue.begin(SAID[index % 4])
        for turn in range(1, TURNS + (index > 0)):
            reply = await policy.reply(dialogue, 7 + index)
            if policy.think:
                reply = Reply.parse(f"<think>Plan {turn}.</think>Reply {turn} to {index}.", True, reply.tokens)
            if not dialogue.reply(reply):
                break
            dialogue.react(Reaction(change=0, utterance=SAID[(index + turn) % 4]))

    run(for_each(range(count), lead))
    return dialogues


def local(body: tuple[Any, Any], think: bool, **options: Any) -> LocalPolicy:
    """A policy with short replies."""
    return LocalPolicy(*body, "en", think=think, **{"max_tokens": 12, **options})


@families
@modes
def test_logprobs_of_sampling_and_training_are_those_of_the_model(bodies: Any, name: str, think: bool) -> None:
    model, _ = bodies[name]
    policy = local(bodies[name], think, temperature=0.8)
    dialogues = converse(policy)
    assert all(len(dialogue.turns) >= 2 for dialogue in dialogues)
    window = getattr(model.config, "sliding_window", None)
    lengths = [len(records(dialogue)[-1].prompt_ids) for dialogue in dialogues]
    assert not window or min(lengths) > 2 * window, "no window was ever crossed"
    check_logprobs(model, dialogues, 0.8)
    batch = collate([from_dialogue(dialogue) for dialogue in dialogues])
    with torch.no_grad():
        logits = make_logits(model, hidden_states(model, batch))
    trained = torch.log_softmax(logits / 0.8, -1).gather(1, batch.targets[:, None])[:, 0]
    sampled = [p for dialogue in dialogues for record in records(dialogue) for p in record.logprobs]
    assert torch.allclose(trained, torch.tensor(sampled), rtol=0, atol=1e-4)
    assert batch.targets.tolist() == [i for replies in sampled_ids(dialogues) for ids in replies for i in ids]
    # What a random model says keeps no format of thinking, so its dialogues hold other words than were sampled.
    if not think:
        for dialogue in dialogues:
            check_dialogue(policy.chat, dialogue)


@families
@modes
def test_greedy_replies_are_those_of_generate(bodies: Any, name: str, think: bool) -> None:
    model, _ = bodies[name]
    policy = local(bodies[name], think, temperature=0.0)
    ends = sorted(policy.chat.stops)
    assert len(ends) >= 4
    for dialogue in converse(policy):
        for record in records(dialogue):
            context = torch.tensor([record.prompt_ids])
            out = model.generate(
                context,
                attention_mask=torch.ones_like(context),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=ends,
                pad_token_id=0,
            )
            assert out[0, context.shape[1] :].tolist() == record.token_ids


@families
def test_prompts_are_what_the_template_renders(bodies: Any, name: str) -> None:
    """At every turn the model reads what the template makes of the dialogue (thinking: replies hold our words)."""
    policy = local(bodies[name], think=True)
    for dialogue in converse(policy):
        said = [message.content for message in dialogue.messages()]
        for turn, record in enumerate(records(dialogue)):
            text = policy.chat.template.render(said[: 2 * turn + 1])
            assert record.prompt_ids == policy.chat.tokenizer.encode(text, add_special_tokens=False)


def test_an_empty_thought_is_seen_by_one_reply_only(bodies: Any) -> None:
    policy = local(bodies["qwen3"], think=False)
    empty = policy.chat.tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    for dialogue in converse(policy):
        replies = records(dialogue)
        for first, second in pairwise(replies):
            start = len(first.context_ids)
            assert first.prompt_ids[start:] == second.prompt_ids[len(second.context_ids) :] == empty
            assert second.context_ids[start : start + len(first.token_ids)] == first.token_ids
        sampled = {i for record in replies for i in record.token_ids}
        assert not set(empty[:1]) & set(replies[-1].context_ids) - sampled


def test_a_reply_ends_at_any_of_several_tokens(bodies: Any) -> None:
    model, tokenizer = bodies["llama3"]
    assert end_tokens(model) == [tokenizer.eos_token_id, 300, 301, 302]
    policy = local(bodies["llama3"], think=False, max_tokens=150)
    ends = set()
    for dialogue in converse(policy, 12):
        for ids in sampled_ids([dialogue])[0]:
            assert not policy.chat.stops & set(ids[:-1])
            if ids[-1] in policy.chat.stops:
                ends.add(ids[-1])
        for record, later in pairwise(records(dialogue)):
            start, length = len(record.context_ids), len(record.token_ids)
            after = later.context_ids[start : start + length + 1]
            assert after[:length] == record.token_ids
            assert policy.chat.stop in after[-2:], "every reply in a context is closed as the template closes it"
    assert len(ends) >= 3


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mistral"])
def test_a_served_policy_reads_what_the_template_renders(bodies: Any, name: str) -> None:
    policy = local(bodies[name], think=False)
    generator = Generator(policy, policy.chat.template.system)
    words = [SAID[0], "I see.", SAID[1]]
    messages = [("assistant" if i % 2 else "user", text) for i, text in enumerate(words)]
    for system in (policy.chat.template.system, "Be brief."):
        ids = generator.prompt([("system", system), *messages])
        assert system in policy.chat.decode(ids)
        assert policy.chat.decode(ids).endswith(policy.chat.decode(policy.chat.turn(words[2]) + policy.chat.lead))
    text = "".join(piece.text for piece in generator.stream(ids, 8, 1.0, 0))
    assert text


def test_capped_attention_is_computed_eagerly(bodies: Any, tmp_path: Path) -> None:
    """Other implementations leave the cap out, without a word."""
    model, tokenizer = bodies["gemma2"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.config._attn_implementation == "eager"
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
        for layer in loaded.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert not torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3)


@families
def test_a_mask_without_the_sliding_window_is_detected(bodies: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = bodies[name]
    check_model(model)
    window = getattr(model.config, "sliding_window", None)
    with monkeypatch.context() as patch:
        patch.setattr(
            "rlver.inference.sampler.attention_mask",
            lambda model, seen, *_: (
                torch.where(seen, 0.0, -1e9)[:, None] if model.config._attn_implementation == "eager" else seen[:, None]
            ),
        )
        if window:
            with pytest.raises(RlverError, match=r"off by"):
                check_model(model)
        else:
            check_model(model)
    assert getattr(model.config, "sliding_window", None) == window and not model.training
    if getattr(model.config, "final_logit_softcapping", None):
        monkeypatch.setattr("rlver.inference.sampler.make_logits", lambda model, hidden: model.lm_head(hidden))
        with pytest.raises(RlverError, match=r"gemma2\) sampled|off by"):
            check_model(model)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("Mamba", {"num_hidden_layers": 1, "state_size": 4}, "layers of kind (mamba|linear_attention)"),
        ("Bloom", {"n_layer": 1, "n_head": 2}, "bloom.*turn by turn"),
        ("Qwen3Next", {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}, "linear"),
    ],
)
def test_an_architecture_that_cannot_be_sampled_exactly_is_rejected(
    kind: str, options: dict[str, Any], why: str
) -> None:
    config = getattr(transformers, kind + "Config")(
        vocab_size=64, hidden_size=16, **options, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    with pytest.raises(RlverError, match=why):
        check_model(model)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Cohere", {"logit_scale": 0.3}), ("Granite", {"logits_scaling": 5.0}), ("Phi3", {}), ("Olmo2", {})],
)
def test_other_decoders_are_sampled_exactly_too(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, kind + "Config")(
        vocab_size=64, **sizes, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options
    )
    check_model(getattr(transformers, kind + "ForCausalLM")(config).eval())


def test_a_context_that_needs_rescaled_position_embeddings_is_rejected() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        rope_parameters=rope,
        eos_token_id=2,
    )
    sampler = Sampler(transformers.LlamaForCausalLM(config).eval())
    sampler.feed([0], [0], [[3] * 20])
    with pytest.raises(RlverError, match="21 tokens is longer than the 20"):
        sampler.feed([0], [20], [[3]])
