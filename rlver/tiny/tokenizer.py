"""The tiny policy's tokenizer: byte-level BPE, trained on the policy's own corpus, with a ChatML template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlver.core.think import CLOSE, OPEN

VOCABULARY = 3072
"""Number of tokens. It is small on purpose: many names and handles in a story are several tokens long, so that the
policy learns to copy tokens instead of words that it has memorised."""

START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on texts. It can encode any text, because it falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    # A word with its leading space is one piece. Chinese has no spaces: runs of two characters keep tokens short.
    split = r"\s?[A-Za-z']+|[0-9]|[\u4e00-\u9fff]{1,2}|\s+(?!\S)|\s?[^\sA-Za-z0-9\u4e00-\u9fff]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, START, _END, OPEN, CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, additional_special_tokens=[START, OPEN, CLOSE]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
