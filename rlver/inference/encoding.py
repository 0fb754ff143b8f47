"""Text to token ids, piece by piece, such that the pieces join as if the whole had been tokenized at once.

Tokenizing pieces on their own can go wrong in two ways. Tokenizers of the SentencePiece family put a space before every
text, so each piece is encoded together with the text before it, whose ids are then removed. And a special token that a
person types as text must not become that token, or anyone could forge a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

_BRACKETED = r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]"
_SPACES = "\u2581\u0120"
"""How SentencePiece and byte-level vocabularies write a space."""
_FALLBACKS = ("a", "\n", "0", "\u3002")
"""Texts to encode a piece after where it would merge with the text that really stands before it."""


def common_prefix(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest common prefix: the common prefix of the first and the last sequence in sorted order."""
    first, last = min(sequences, key=list), max(sequences, key=list)
    length = min(len(first), len(last))
    return first[: next((i for i in range(length) if first[i] != last[i]), length)]


class Encoder:
    """Encodes the texts of a chat template and the messages between them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Iterable[str]) -> None:
        """Prepare a tokenizer.

        Args:
            template: the texts that the chat template puts between messages.
        """
        self.tokenizer = tokenizer
        added = {str(token): (id_, token.special) for id_, token in tokenizer.added_tokens_decoder.items()}
        marks = {text: id_ for text, (id_, special) in added.items() if special or re.fullmatch(_BRACKETED, text)}
        self._mark_texts = _any_of(marks)
        # The unknown token is no mark, because any word may become it.
        self._mark_ids = frozenset(marks.values()) - {tokenizer.unk_token_id}
        self._added_texts = _any_of(text for text in added if text.strip())
        # Some templates mark messages with plain text that is no token, such as [INST] in older ones.
        self._plain_marks = _any_of(mark for text in template for mark in self._find_plain_marks(text))
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[:1]
        self._prepends_space = bool(first) and first[0][:1] in tuple(_SPACES)

    def template(self, text: str, after: str = "") -> list[int]:
        """Ids of a text of the template, in which special tokens are special.

        Args:
            after: the text that stands before it.
        """
        if not after or not self._prepends_space:
            return self._encode(text)
        for context in (after, *_FALLBACKS):
            before, both = self._encode(context), self._encode(context + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._encode(text)

    def words(self, text: str, after: str = "") -> list[int]:
        """Ids of the words of a user or policy, in which special tokens are plain text.

        Special tokens are split after their first character, so that their characters are encoded apart. A mark that
        is plain text in the template gets a space after its first character.

        Args:
            after: the text of the template that stands before the words.
        """
        if self._plain_marks:
            text = self._plain_marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)
        cuts = [mark.start() + 1 for mark in self._mark_texts.finditer(text)] if self._mark_texts else []
        ids = self._encode_parts([text[i:j] for i, j in pairwise([0, *cuts, len(text)])], after)
        # A tokenizer that normalises text may still find a mark, but none in single characters.
        return ids if self._mark_ids.isdisjoint(ids) else self._encode_parts(list(text), after)

    def tail(self, text: str) -> str:
        """The end of a template's text on which the ids after it may depend: from its last added token on."""
        last = max((mark.start() for mark in self._added_texts.finditer(text)), default=0) if self._added_texts else 0
        return text[last:]

    def _find_plain_marks(self, text: str) -> list[str]:
        """Message marks in a text of the template that are not tokens: bracketed words, otherwise whole lines."""
        without_tokens = self._added_texts.sub("\n", text) if self._added_texts else text
        bracketed = [mark for mark in re.findall(_BRACKETED, without_tokens) if len(mark) > 2]
        if bracketed or without_tokens != text:
            return bracketed
        return [line.strip() for line in text.splitlines() if len(line.strip()) > 1]

    def _encode_parts(self, parts: list[str], after: str) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self.template(part, after)
            after = _FALLBACKS[0]
        return ids

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of these texts, longer ones first; None if there are none."""
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
