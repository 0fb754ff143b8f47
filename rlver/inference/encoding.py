"""Text to token ids, piece by piece, so that the pieces stand together as the whole would.

Two things go wrong where pieces are tokenised apart. Tokenizers of the SentencePiece family set a space before
whatever they are given, so each piece is encoded behind what stands before it, which is then taken off again. And a
mark that somebody types must not become the token that it spells, or anybody could forge a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

_BRACKETED = r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]"
_SPACES = "\u2581\u0120"
"""How SentencePiece and byte-level vocabularies write a space."""
_ELSE = ("a", "\n", "0", "\u3002")
"""What a text is encoded behind where it would melt into the text before it."""


def common_beginning(chunks: Sequence[Sequence[int]]) -> Sequence[int]:
    """The token ids that all of these begin with: what the first and the last in order begin with."""
    first, last = min(chunks, key=list), max(chunks, key=list)
    length = min(len(first), len(last))
    return first[: next((i for i in range(length) if first[i] != last[i]), length)]


class Encoder:
    """Encodes the texts of a template and the words between them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Iterable[str]) -> None:
        """`template`: the texts that the template sets between messages."""
        self.tokenizer = tokenizer
        added = {str(token): (id_, token.special) for id_, token in tokenizer.added_tokens_decoder.items()}
        marks = {text: id_ for text, (id_, special) in added.items() if special or re.fullmatch(_BRACKETED, text)}
        self._spelled = _any_of(marks)
        # What stands for the unknown may come of any word.
        self._marks = frozenset(marks.values()) - {tokenizer.unk_token_id}
        self._tokens = _any_of(text for text in added if text.strip())
        # Some templates mark messages with plain text, such as [INST] in older ones, which the tokenizer does not know.
        self._plain = _any_of(mark for text in template for mark in self._plain_marks(text))
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[:1]
        self._sets_space = bool(first) and first[0][:1] in tuple(_SPACES)

    def template(self, text: str, after: str = "") -> list[int]:
        """Ids of a template's text; marks in it are marks. `after` is what stands before it."""
        if not after or not self._sets_space:
            return self._encode(text)
        for context in (after, *_ELSE):
            before, both = self._encode(context), self._encode(context + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._encode(text)

    def words(self, text: str, after: str = "") -> list[int]:
        """Ids of somebody's words behind a template's text `after`. Marks in them are plain text.

        A mark that the tokenizer has a token for is spelled out; one that is plain text in the template, too, gets a
        space behind its first character.
        """
        if self._plain:
            text = self._plain.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)
        cuts = [mark.start() + 1 for mark in self._spelled.finditer(text)] if self._spelled else []
        ids = self._in_parts([text[i:j] for i, j in pairwise([0, *cuts, len(text)])], after)
        # A tokenizer that normalises text can read a mark where none is spelled; single characters hold none.
        return ids if self._marks.isdisjoint(ids) else self._in_parts(list(text), after)

    def tail(self, text: str) -> str:
        """What of a template's text the tokens behind it may depend on: from its last mark on."""
        last = max((mark.start() for mark in self._tokens.finditer(text)), default=0) if self._tokens else 0
        return text[last:]

    def _plain_marks(self, text: str) -> list[str]:
        """Marks of a message in a text of the template that are no tokens: what is bracketed, else whole lines."""
        rest = self._tokens.sub("\n", text) if self._tokens else text
        bracketed = [mark for mark in re.findall(_BRACKETED, rest) if len(mark) > 2]
        if bracketed or rest != text:
            return bracketed
        return [line.strip() for line in text.splitlines() if len(line.strip()) > 1]

    def _in_parts(self, parts: list[str], after: str) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self.template(part, after)
            after = _ELSE[0]
        return ids

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of these texts, longer ones first."""
    found = sorted(set(texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, found))) if found else None
