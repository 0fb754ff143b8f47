"""The tiny policy's model: Qwen2 at 0.6 million parameters, initialised so that it can copy from the start.

Taking up what somebody said needs an induction circuit: one head that looks at the previous token, and one in the
next layer that finds where the current token stood before and copies what followed (Olsson et al. 2022). Trained
from noise, a model of this size finds it late or never; we lay it in the initial weights, and training does the
rest. Everything else starts as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

_LOOK_BACK = 11.0
"""Length of the previous-token head's query and key: how sharply it looks one token back."""
_MATCH = 2.0
"""Gain of the induction head's query and key."""
_WRITE = 0.02
"""Gain of what a head writes, at the scale of the embeddings (initializer_range)."""


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    hidden: int,
    layers: int,
    heads: int,
    head_size: int,
    feedforward: int,
) -> Qwen2ForCausalLM:
    """A Qwen2 model with fresh weights and an induction circuit in its first two layers."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=feedforward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_size,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _lay_induction_circuit(model)
    return model


@torch.no_grad()
def _lay_induction_circuit(model: Qwen2ForCausalLM) -> None:
    hidden, size = model.config.hidden_size, model.config.head_dim
    look_back, copy = (model.model.layers[i].self_attn for i in range(2))
    frequencies = model.model.rotary_emb.inv_freq

    # Head 0 of layer 0 looks one token back whatever the tokens are: its query and key are constants (biases), and
    # the key is turned by one position, so that RoPE makes them agree best at distance one.
    query = torch.zeros(size)
    fast = frequencies > 0.05
    query[: size // 2][fast] = _LOOK_BACK / float(fast.sum()) ** 0.5
    cos, sin = frequencies.cos(), frequencies.sin()
    look_back.q_proj.weight[:size] = 0
    look_back.k_proj.weight[:size] = 0
    look_back.q_proj.bias[:size] = query
    look_back.k_proj.bias[:size] = torch.cat([query[: size // 2] * cos, query[: size // 2] * sin])
    read, write = _orthonormal(hidden, size), _orthonormal(hidden, size)
    look_back.v_proj.weight[:size] = read.T
    look_back.o_proj.weight[:, :size] = _WRITE * write

    # Head 0 of layer 1 compares the current token with what layer 0 wrote about previous tokens, in dimensions that
    # RoPE hardly turns, and copies the token it finds.
    slow = (frequencies < 0.004).to(read.dtype).repeat(2)[:, None]
    copy.q_proj.weight[:size] = _MATCH * slow * read.T
    copy.k_proj.weight[:size] = _MATCH * slow * write.T
    value = _orthonormal(hidden, size)
    copy.v_proj.weight[:size] = value.T
    copy.o_proj.weight[:, :size] = 3 * _WRITE * value


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rows))[0][:, :columns]
