"""The tiny policy's model: Qwen2 at 0.7 million parameters, initialised so that it can copy from the start.

Taking up what somebody said needs an induction circuit: heads that look at the tokens before, and one in the next
layer that finds where the same tokens stood earlier and copies what followed (Olsson et al. 2022). Trained from noise,
a model of this size finds it late or never; we lay it in the initial weights, and training does the rest.
Everything else starts as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlver.tiny.tokenizer import START

_LOOK_BACK = 20.0
"""Length of the previous-token head's query and key: how sharply it looks one token back."""
_COPYING = ((2.0, 1.75, 2.5), (2.7, 1.4, 1.0))
"""Of the two copying heads: gain of query and key, how strongly it rests where nothing matches, gain of the copy."""
_RECENCY = 6.7
"""How much the copying heads prefer what was said lately."""
_GIST = ((0.0316, 2.0), (0.01, 3.0), (0.00316, 4.0))
"""How a gist head prefers what was said lately: speeds of RoPE and by how many nats each counts. It falls by about
two nats over forty tokens, an utterance's length, by five over a hundred, and by no less for those before."""
_EMBEDDING = 0.1
"""Scale of the embeddings and of what the heads write beside them; large enough to outlast the first updates."""


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
            rope_parameters={"rope_type": "default", "rope_theta": 1e8},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _lay_induction_circuit(model, tokenizer.convert_tokens_to_ids(START))
    return model


@torch.no_grad()
def _lay_induction_circuit(model: Qwen2ForCausalLM, sink: int) -> None:
    hidden, size = model.config.hidden_size, model.config.head_dim
    look_back, copy = (model.model.layers[i].self_attn for i in range(2))
    frequencies = model.model.rotary_emb.inv_freq

    # Tokens live in half of the residual stream; a quarter each is kept for what stood one and two tokens before.
    sketch = 3 * size // 4
    tokens, *notes = _orthonormal(hidden, hidden).split([hidden - 2 * sketch, sketch, sketch], dim=1)
    embedding = model.get_input_embeddings().weight
    embedding.copy_(_EMBEDDING * torch.randn(len(embedding), tokens.shape[1]) @ tokens.T)
    read = tokens @ _orthonormal(tokens.shape[1], sketch)

    # Heads 0 and 1 of layer 0 look one and two tokens back, whatever the tokens are: their queries and keys are
    # constants (biases), and the key is turned by that many positions, so that RoPE makes them agree best there.
    fast = frequencies > 0.05
    query = torch.zeros(size)
    query[: size // 2][fast] = _LOOK_BACK / float(fast.sum()) ** 0.5
    for head, note in enumerate(notes):
        first, last = head * size, (head + 1) * size
        turn = (head + 1) * frequencies
        look_back.q_proj.weight[first:last] = 0
        look_back.k_proj.weight[first:last] = 0
        look_back.q_proj.bias[first:last] = query
        look_back.k_proj.bias[first:last] = torch.cat(
            [query[: size // 2] * turn.cos(), query[: size // 2] * turn.sin()]
        )
        look_back.v_proj.weight[first : first + sketch] = read.T
        look_back.o_proj.weight[:, first : first + sketch] = _EMBEDDING * note

    # One head of each layer takes in the last utterance: it looks at everything alike, but lately said. Without it, the
    # ten words of a hint are lost among hundreds, and what they call for is never learned in a long talk.
    for layer in (look_back, copy) if model.config.num_attention_heads > 2 else ():
        for speed, nats in _GIST:
            at = 2 * size + int((frequencies - speed).abs().argmin())
            layer.q_proj.bias[at] = layer.k_proj.bias[at] = (nats * size**0.5) ** 0.5

    # Heads 0 and 1 of layer 1 look for earlier places like this one and copy what stood there. Head 0 compares the last
    # two tokens, head 1 only the last one: it finds where a thing begins, head 0 how it goes on. They compare in
    # dimensions that RoPE hardly turns, prefer what was said lately, and rest on the marks between messages where
    # nothing matches, or they would copy noise everywhere.
    recent = int((frequencies - 0.01).abs().argmin())
    rest = size // 2 - 1
    slow = torch.cat([(frequencies < 0.004) & (frequencies > frequencies[-1])] * 2).nonzero().squeeze(1)
    mark = torch.nn.functional.normalize(embedding[sink], dim=0)
    width = min(size, tokens.shape[1])
    for head, (match, resting, gain) in enumerate(_COPYING):
        first = head * size
        places = torch.zeros(2, size, sketch)
        for place in places:
            place[slow] = _orthonormal(max(len(slow), sketch), sketch)[: len(slow)]
        places[1] *= head == 0
        copy.q_proj.weight[first : first + size] = match * (places[0] @ read.T + places[1] @ notes[0].T)
        copy.k_proj.weight[first : first + size] = match * (places[0] @ notes[0].T + places[1] @ notes[1].T)
        copy.q_proj.bias[first + recent] = copy.k_proj.bias[first + recent] = _RECENCY
        copy.q_proj.bias[first + rest] = 10.0
        copy.k_proj.weight[first + rest] = resting * mark
        copy.v_proj.weight[first : first + width] = tokens.T[:width]
        copy.o_proj.weight[:, first : first + width] = gain * _EMBEDDING * tokens[:, :width]


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rows))[0][:, :columns]
