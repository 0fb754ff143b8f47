"""A chat template as four pieces of token ids, so that a dialogue grows by appending and is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlver.core.errors import RlverError


class ChatFormat:
    """Token ids around the messages of a dialogue: system prompt, user's words, policy's reply, user's words ..."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str) -> None:
        self.tokenizer = tokenizer
        # The template is rendered once around marks that stand for the messages, and cut at them.
        first, reply, second = "\u2460", "\u2461", "\u2462"
        try:
            text = tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": system},
                    {"role": "user", "content": first},
                    {"role": "assistant", "content": reply},
                    {"role": "user", "content": second},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
        except (ValueError, KeyError, TemplateError) as error:
            raise RlverError(f"{tokenizer.name_or_path}: its chat template cannot be used ({error}).") from None
        if system not in str(text):
            raise RlverError(f"{tokenizer.name_or_path}: its chat template drops the system prompt.")
        parts = [str(text)]
        for mark in (first, reply, second):
            *before, last = parts
            if last.count(mark) != 1:
                raise RlverError(f"{tokenizer.name_or_path}: its chat template does not render every message once.")
            parts = [*before, *last.split(mark)]
        head, answer, back, tail = parts
        if tokenizer.eos_token is None or not back.startswith(tokenizer.eos_token):
            raise RlverError(
                f"{tokenizer.name_or_path}: its chat template does not close a reply with the end-of-text token "
                f"{tokenizer.eos_token!r}, so sampled replies and template would not agree."
            )
        if tail != answer:
            raise RlverError(f"{tokenizer.name_or_path}: its chat template opens later replies in another way.")
        self.stop: int = int(tokenizer.eos_token_id)
        self._head = self._template(head)
        self._answer = self._template(answer)
        self._back = self._template(back[len(tokenizer.eos_token) :])

    def opening(self, utterance: str) -> list[int]:
        """Ids up to where the first reply begins."""
        return [*self._head, *self.text(utterance), *self._answer]

    def turn(self, utterance: str) -> list[int]:
        """Ids from behind a closed reply to where the next reply begins."""
        return [*self._back, *self.text(utterance), *self._answer]

    def text(self, content: str) -> list[int]:
        """Ids of somebody's words. Template marks inside them are plain text, so nobody can forge a message."""
        return self.tokenizer.encode(content, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without the closing mark."""
        if ids and ids[-1] == self.stop:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _template(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
