"""Sampling and training of other architectures: their own plain forward pass gives the same ids and numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import make_model, make_tokenizer
from torch import Tensor

from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.inference.decoder import make_logits
from rlver.inference.exactness import check_model, check_trace
from rlver.inference.model_folder import load_model
from rlver.inference.sampler import Sampler
from rlver.policies.local import LocalPolicy, Trace, end_tokens
from rlver.serve.generate import Generator
from rlver.stories.generate import generate
from rlver.train.batch import collate, from_trace, hidden_states

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


def talk(policy: LocalPolicy, count: int = 3) -> tuple[list[Dialogue], list[Trace]]:
    """Lead dialogues of different lengths. With thinking they hold other words, as random tokens keep no format."""
    profile = generate("en", "train", 1)[0]
    dialogues = [Dialogue(profile, PRESETS["sage"], policy.think) for _ in range(count)]
    for index, dialogue in enumerate(dialogues):
        dialogue.begin(SAID[index % 4])
    policy.start(dialogues, [7 + index for index in range(count)])
    for turn in range(1, TURNS + 1):
        active = [i for i in range(count) if dialogues[i].stop is None and (i or turn < TURNS)]
        for i, text in zip(active, asyncio.run(policy.reply(active)), strict=True):
            raw = f"<think>Plan {turn}.</think>Reply {turn} to {i}." if policy.think else text
            if dialogues[i].reply(raw):
                dialogues[i].react(Reaction(change=0, utterance=SAID[(i + turn) % 4]))
    return dialogues, policy.traces


def local(body: tuple[Any, Any], think: bool, **options: Any) -> LocalPolicy:
    """A policy with short replies."""
    return LocalPolicy(*body, "en", think=think, **{"max_tokens": 12, **options})


@torch.no_grad()
def plain_logprobs(model: Any, trace: Trace, temperature: float = 1.0) -> list[Tensor]:
    """Log-probs of each reply by one forward pass of the whole context, without cache or mask of ours."""
    found = []
    for reply in trace.replies:
        context = trace.context[: reply.start] + reply.lead
        logits = model(input_ids=torch.tensor([context + reply.ids]), use_cache=False).logits[0, len(context) - 1 : -1]
        scores = torch.log_softmax(logits / temperature, -1)
        found.append(scores.gather(1, torch.tensor(reply.ids)[:, None])[:, 0])
    return found


@families
@modes
def test_logprobs_of_sampling_and_training_are_those_of_the_model(bodies: Any, name: str, think: bool) -> None:
    model, _ = bodies[name]
    policy = local(bodies[name], think, temperature=0.8)
    dialogues, traces = talk(policy)
    samples = [from_trace(trace) for trace in traces]
    batch = collate(samples)
    with torch.no_grad():
        logits = make_logits(model, hidden_states(model, batch))
    trained = torch.log_softmax(logits / 0.8, -1).gather(1, batch.targets[:, None])[:, 0]
    window = getattr(model.config, "sliding_window", None)
    assert not window or all(trace.replies[-1].start > 2 * window for trace in traces), "no window was ever crossed"
    plain = [plain_logprobs(model, trace, 0.8) for trace in traces]
    for trace, expected in zip(traces, plain, strict=True):
        assert len(trace.replies) >= 2
        for reply, values in zip(trace.replies, expected, strict=True):
            assert torch.allclose(torch.tensor(reply.logprobs), values, rtol=0, atol=1e-4)
    assert torch.allclose(trained, torch.cat([v for values in plain for v in values]), rtol=0, atol=1e-4)
    assert batch.targets.tolist() == [i for trace in traces for reply in trace.replies for i in reply.ids]
    # What a random model says keeps no format of thinking, so its dialogues hold other words than were sampled.
    if not think:
        for dialogue, trace in zip(dialogues, traces, strict=True):
            check_trace(policy.chat, dialogue, trace)


@families
@modes
def test_greedy_replies_are_those_of_generate(bodies: Any, name: str, think: bool) -> None:
    model, _ = bodies[name]
    policy = local(bodies[name], think, temperature=0.0)
    ends = sorted(policy.chat.stops)
    assert len(ends) >= 4
    for trace in talk(policy)[1]:
        for reply in trace.replies:
            context = torch.tensor([trace.context[: reply.start] + reply.lead])
            out = model.generate(
                context,
                attention_mask=torch.ones_like(context),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=ends,
                pad_token_id=0,
            )
            assert out[0, context.shape[1] :].tolist() == reply.ids


@families
def test_contexts_are_what_the_template_renders(bodies: Any, name: str) -> None:
    """At every turn the model reads what the template makes of the talk so far (thinking: replies hold our words)."""
    policy = local(bodies[name], think=True)
    for dialogue, trace in zip(*talk(policy), strict=True):
        said = [message.content for message in dialogue.messages()]
        for turn, reply in enumerate(trace.replies):
            whole = policy.chat.tokenizer.encode(
                policy.chat.template.render(said[: 2 * turn + 1]), add_special_tokens=False
            )
            assert trace.context[: reply.start] + reply.lead == whole


def test_an_empty_thought_is_seen_by_one_reply_only(bodies: Any) -> None:
    policy = local(bodies["qwen3"], think=False)
    empty = policy.chat.tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    for trace in talk(policy)[1]:
        for first, second in zip(trace.replies, trace.replies[1:], strict=False):
            assert first.lead == second.lead == empty
            assert trace.context[first.start : first.start + len(first.ids)] == first.ids
        assert not set(empty[:1]) & set(trace.context) - {i for reply in trace.replies for i in reply.ids}


def test_a_reply_ends_at_any_of_several_tokens(bodies: Any) -> None:
    model, tokenizer = bodies["llama3"]
    assert end_tokens(model) == [tokenizer.eos_token_id, 300, 301, 302]
    policy = local(bodies["llama3"], think=False, max_tokens=150)
    ends = set()
    for trace in talk(policy, 12)[1]:
        for reply in trace.replies:
            assert not policy.chat.stops & set(reply.ids[:-1])
            if reply.ids[-1] in policy.chat.stops:
                ends.add(reply.ids[-1])
        for reply in trace.replies[:-1]:
            after = trace.context[reply.start : reply.start + len(reply.ids) + 1]
            assert after[: len(reply.ids)] == reply.ids
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
        loaded.set_attn_implementation("sdpa")
        assert not torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3)


@families
def test_a_mask_that_forgets_the_window_is_found(bodies: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("Mamba", {"num_hidden_layers": 1, "state_size": 4}, "layers of kind mamba"),
        ("Bloom", {"n_layer": 1, "n_head": 2}, "bloom.*turn by turn"),
        ("Qwen3Next", {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}, "linear"),
    ],
)
def test_an_architecture_that_we_cannot_sample_from_is_refused(kind: str, options: dict[str, Any], why: str) -> None:
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


def test_a_context_beyond_stale_position_embeddings_is_refused() -> None:
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
