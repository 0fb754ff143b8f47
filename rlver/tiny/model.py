"""The tiny policy's model: Qwen2 with 0.7 million parameters, initialised so that it can copy from the start.

To repeat a phrase that the user mentioned, a model needs an induction circuit: previous-token heads in one layer, and
copying heads in the next layer that find an earlier occurrence of the current tokens and copy what followed it (Olsson
et al. 2022). A model of this size forms the circuit late or never when it is trained from random weights. Therefore the
initial weights contain one, and training refines it. All other weights are initialised as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlver.tiny.tokenizer import START

_LOOK_BACK = 20.0
"""Norm of the query and of the key of a previous-token head: how sharply it attends to one position."""
_COPYING = ((2.0, 1.75, 2.5), (2.7, 1.4, 1.0))
"""For each of the two copying heads: gain of query and key, attention to message marks (used if nothing matches), and
gain of the output."""
_RECENCY = 6.7
"""How strongly the copying heads prefer recent tokens."""
_GIST = ((0.0316, 2.0), (0.01, 3.0), (0.00316, 4.0))
"""How a gist head prefers recent tokens: RoPE frequencies, and the weight of each in nats. In total, the attention
score falls by about two nats over forty tokens (the length of an utterance) and by at least five over a hundred."""
_EMBEDDING = 0.1
"""Scale of the embeddings and of the heads' outputs, large enough to survive the first updates."""


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    hidden: int,
    layers: int,
    heads: int,
    head_size: int,
    feedforward: int,
) -> Qwen2ForCausalLM:
    """A Qwen2 model with new weights and an induction circuit in its first two layers.

    Args:
        seed: of the weights.
        hidden: size of the residual stream.
        layers: number of layers, at least 2.
        heads: number of attention heads per layer, at least 2. Gist heads exist from 3 heads on.
        head_size: size of a head's queries, keys and values.
        feedforward: size of the feed-forward layers.
    """
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
            rope_parameters={"rope_type": "default", "rope_theta": 1e8},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _initialise_induction_circuit(model, tokenizer.convert_tokens_to_ids(START))
    return model


@torch.no_grad()
def _initialise_induction_circuit(model: Qwen2ForCausalLM, start_id: int) -> None:
    """Write an induction circuit and gist heads into the weights of a model.

    Args:
        start_id: id of the token that begins a message.
    """
    hidden, size = model.config.hidden_size, model.config.head_dim
    first_layer, second_layer = (model.model.layers[i].self_attn for i in range(2))
    frequencies = model.model.rotary_emb.inv_freq

    # One part of the residual stream holds the token at a position. Two smaller parts hold sketches (compressed copies)
    # of the tokens one and two positions before.
    sketch = 3 * size // 4
    token_space, *previous_spaces = _orthonormal(hidden, hidden).split([hidden - 2 * sketch, sketch, sketch], dim=1)
    embedding = model.get_input_embeddings().weight
    embedding.copy_(_EMBEDDING * torch.randn(len(embedding), token_space.shape[1]) @ token_space.T)
    to_sketch = token_space @ _orthonormal(token_space.shape[1], sketch)

    # Heads 0 and 1 of the first layer attend one and two positions back, whatever the tokens are. Queries and keys are
    # constants (biases), and the key is rotated by that many positions, so that under RoPE it matches best there.
    fast = frequencies > 0.05
    query = torch.zeros(size)
    query[: size // 2][fast] = _LOOK_BACK / float(fast.sum()) ** 0.5
    for head, space in enumerate(previous_spaces):
        first, last = head * size, (head + 1) * size
        angles = (head + 1) * frequencies
        first_layer.q_proj.weight[first:last] = 0
        first_layer.k_proj.weight[first:last] = 0
        first_layer.q_proj.bias[first:last] = query
        first_layer.k_proj.bias[first:last] = torch.cat(
            [query[: size // 2] * angles.cos(), query[: size // 2] * angles.sin()]
        )
        first_layer.v_proj.weight[first : first + sketch] = to_sketch.T
        first_layer.o_proj.weight[:, first : first + sketch] = _EMBEDDING * space

    # Head 2 of both layers reads the gist of the last utterance: it attends to all recent tokens alike. Without it, the
    # ten words of a hint are lost among hundreds of others, and a long dialogue never teaches what they call for.
    for layer in (first_layer, second_layer) if model.config.num_attention_heads > 2 else ():
        for frequency, nats in _GIST:
            dimension = 2 * size + int((frequencies - frequency).abs().argmin())
            layer.q_proj.bias[dimension] = layer.k_proj.bias[dimension] = (nats * size**0.5) ** 0.5

    # Heads 0 and 1 of the second layer attend to earlier positions that follow the same tokens, and copy the token
    # there. Head 0 compares the last two tokens and continues a copy; head 1 compares only the last one and begins it.
    # They compare in dimensions that RoPE hardly rotates, and prefer recent tokens. If nothing matches, they attend to
    # message marks, because they would copy noise otherwise.
    recency_dimension = int((frequencies - 0.01).abs().argmin())
    mark_dimension = size // 2 - 1
    slow = torch.cat([(frequencies < 0.004) & (frequencies > frequencies[-1])] * 2).nonzero().squeeze(1)
    mark = torch.nn.functional.normalize(embedding[start_id], dim=0)
    width = min(size, token_space.shape[1])
    for head, (match_gain, mark_gain, output_gain) in enumerate(_COPYING):
        first = head * size
        projections = torch.zeros(2, size, sketch)
        for projection in projections:
            projection[slow] = _orthonormal(max(len(slow), sketch), sketch)[: len(slow)]
        projections[1] *= head == 0
        second_layer.q_proj.weight[first : first + size] = match_gain * (
            projections[0] @ to_sketch.T + projections[1] @ previous_spaces[0].T
        )
        second_layer.k_proj.weight[first : first + size] = match_gain * (
            projections[0] @ previous_spaces[0].T + projections[1] @ previous_spaces[1].T
        )
        second_layer.q_proj.bias[first + recency_dimension] = _RECENCY
        second_layer.k_proj.bias[first + recency_dimension] = _RECENCY
        second_layer.q_proj.bias[first + mark_dimension] = 10.0
        second_layer.k_proj.weight[first + mark_dimension] = mark_gain * mark
        second_layer.v_proj.weight[first : first + width] = token_space.T[:width]
        second_layer.o_proj.weight[:, first : first + width] = output_gain * _EMBEDDING * token_space[:, :width]


def _orthonormal(rows: int, columns: int) -> Tensor:
    """A random matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, rows))[0][:, :columns]
