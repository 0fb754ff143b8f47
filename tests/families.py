"""Tokenizers, templates and tiny models of the kinds that people bring. The templates are ours, of the usual forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlver.policies.prompts import system_prompt

TEXTS = [
    *(system_prompt(language, think) for language in ("en", "zh") for think in (False, True)),
    "The kettle broke on Monday and my sister laughed at me. Nobody asked me why.",
    "What happened after she laughed? I did not sleep at all, you know. It is 5 o'clock, oh no!",
    "我昨天把钥匙弄丢了，心里很乱。你愿意说说后来怎么样了吗？",
    "user assistant system model USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>> <|user|> <|assistant|> Today 26 Jul",
]
_PIECES = r"'s|'t|[^\r\n\w]?[A-Za-z]+|\d| ?[^\s\w]+[\r\n]*|[\u4e00-\u9fff]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(special: Sequence[str], other: Sequence[str] = (), **names: Any) -> PreTrainedTokenizerFast:
    """As of Qwen and Llama 3: byte-level BPE; tokens of `other` are added ones that are not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return _finish(tokenizer, trainer, special, other, names)


def sentence_piece(
    kind: str, special: Sequence[str], other: Sequence[str] = (), **names: Any
) -> PreTrainedTokenizerFast:
    """As of Gemma ("bare": no space before the text), Mistral ("first"), Llama 2 ("legacy"); "unigram" is "first"."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="never" if kind == "bare" else "first")
    shared: dict[str, Any] = {"vocab_size": 1100, "special_tokens": ["<unk>", *byte_tokens], "show_progress": False}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = metaspace
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(**shared))
    # Bytes are pieces of the vocabulary, no marks.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    if kind == "unigram":  # its own trainer gives other pieces in every process
        pieces = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
        scored = [
            [piece, -20.0 if piece in shared["special_tokens"] else -math.log(2 + i)] for i, piece in enumerate(pieces)
        ]
        state["model"] = {"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": True}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    space = normalizers.Replace(" ", "\u2581")
    if kind == "bare":
        tokenizer.normalizer, tokenizer.pre_tokenizer = space, None
    elif kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [] if kind == "bare" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _finish(tokenizer, None, ["<unk>", *special], other, {"unk_token": "<unk>", **names})


def _finish(
    tokenizer: Tokenizer, trainer: Any, special: Sequence[str], other: Sequence[str], names: dict[str, Any]
) -> PreTrainedTokenizerFast:
    if trainer is not None:
        tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in other])
    if bos := names.get("bos_token"):
        # What `encode` sets before a text unless it is told not to.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


_ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{%- if messages[0]['role'] == 'system' -%}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- else -%}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}"
    "{%- for m in messages -%}{%- if not (loop.first and m.role == 'system') -%}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
QWEN3 = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- set content = m.content -%}{%- if m.role == 'assistant' -%}"
    "{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}{%- set content = '<think>\n\n</think>\n\n' + content -%}{%- endif -%}"
    "{%- endif -%}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_GEMMA = (
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% set prefix = '' %}" + _ALTERNATE + _GEMMA
)
GEMMA3 = (
    "{{ bos_token }}{% set prefix = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    + _ALTERNATE
    + _GEMMA
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\n\n' %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}{{- bos_token }}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{- '[INST] ' + (system if loop.last else '') + m['content'] + '[/INST]' }}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL_OLD = (
    "{{ bos_token }}" + _ALTERNATE + "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set said = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] if loop.first and system else m['content'] %}"
    "{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ bos_token + m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


class Family(NamedTuple):
    """A kind of model."""

    template: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    close: str
    model: str
    """Prefix of the classes in transformers."""
    options: dict[str, Any]


def _chatml(*other: str) -> PreTrainedTokenizerFast:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(marks, other, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _llama3() -> PreTrainedTokenizerFast:
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(marks, bos_token=marks[0], eos_token=marks[1])


def _gemma() -> PreTrainedTokenizerFast:
    marks = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    return sentence_piece("bare", marks, ["\n\n", "<table>"], bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def _mistral(kind: str, *marks: str) -> PreTrainedTokenizerFast:
    return sentence_piece(kind, ["<s>", "</s>", *marks], bos_token="<s>", eos_token="</s>")


def _r1() -> PreTrainedTokenizerFast:
    marks = ["<|begin|>", "<|end|>"]
    return byte_level(
        marks, ["<|User|>", "<|Assistant|>", "<think>", "</think>"], bos_token=marks[0], eos_token=marks[1]
    )


_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_WINDOWS = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

FAMILIES = {
    "qwen2.5": Family(CHATML, _chatml, "<|im_end|>", "Qwen2", {}),
    "qwen2-window": Family(
        CHATML,
        _chatml,
        "<|im_end|>",
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "qwen3": Family(
        QWEN3, lambda: _chatml("<think>", "</think>", "<tool_call>"), "<|im_end|>", "Qwen3", {"head_dim": 12}
    ),
    "llama3": Family(LLAMA3, _llama3, "<|eot_id|>", "Llama", {"rope_parameters": _SCALED}),
    "gemma2": Family(
        GEMMA2,
        _gemma,
        "<end_of_turn>",
        "Gemma2",
        {"head_dim": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **_WINDOWS},
    ),
    "gemma3": Family(GEMMA3, _gemma, "<end_of_turn>", "Gemma3", {"head_dim": 12, **_WINDOWS}),
    "mistral": Family(
        MISTRAL, lambda: _mistral("first", "[INST]", "[/INST]"), "</s>", "Mistral", {"sliding_window": 12}
    ),
    "mistral-old": Family(MISTRAL_OLD, lambda: _mistral("legacy"), "</s>", "Mistral", {"sliding_window": None}),
    "mistral-unigram": Family(MISTRAL, lambda: _mistral("unigram", "[INST]", "[/INST]"), "</s>", "Mixtral", {}),
    "llama2": Family(LLAMA2, lambda: _mistral("legacy"), "</s>", "Llama", {}),
    "zephyr": Family(ZEPHYR, lambda: _mistral("legacy"), "</s>", "Mistral", {}),
    "vicuna": Family(VICUNA, lambda: _mistral("legacy"), "</s>", "Llama", {}),
    "r1": Family(R1, _r1, "<|end|>", "Qwen2", {}),
}


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, with its template."""
    tokenizer = FAMILIES[name].tokenizer()
    tokenizer.chat_template = FAMILIES[name].template
    tokenizer.name_or_path = f"some/{name}"
    return tokenizer


def make_model(name: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tiny model of a family with random weights, whose logits differ enough to show a mistake."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    suffix = "TextConfig" if family.model == "Gemma3" else "Config"
    config = getattr(transformers, family.model + suffix)(**settings | family.options)
    model = getattr(transformers, family.model + "ForCausalLM")(config)
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model.eval()
