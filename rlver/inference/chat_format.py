"""A chat template as pieces of token ids, so that a dialogue grows by appending and is never tokenised again.

Where the pieces meet, these rules hold: words lose white space around them; spaces that a template sets before words
are tokenised with the words; what is sampled stays as it was sampled, white space and all, and is followed by the
template's closing token unless it ended with that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.inference.chat_template import name_of, read_template
from rlver.inference.encoding import Encoder

_PROBE = ("Hello.", "Yes? I am with you.", "我昨天把钥匙弄丢了。", "Oh no!", "Well: never mind, it's 5 o'clock...")
"""A talk to try a template with."""


class ChatFormat:
    """Token ids around the messages of a dialogue: system prompt, user's words, policy's reply, user's words ..."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, system: str, think: bool = False, stops: Collection[int] = ()
    ) -> None:
        """Read a tokenizer's chat template.

        Args:
            system: the system prompt.
            think: whether the policy writes its thoughts before each reply.
            stops: more tokens that end a reply, beside the template's closing token and the end of text.

        Raises:
            RlverError: there is no template, or the pieces of a talk would not be what the template gives.
        """
        self.tokenizer = tokenizer
        self.template = template = read_template(tokenizer, system, think)
        around = template.head.replace(template.system, "")
        self._encoder = Encoder(tokenizer, (around, template.answer, template.back, template.lead))
        (self.stop,) = self._encoder.template(template.close)
        """The token that closes a reply."""
        ends = (self.stop, tokenizer.eos_token_id, *stops)
        self.stops = frozenset(int(end) for end in ends if end is not None)
        """Tokens that end a reply when they are sampled; the closing token is one of them."""
        self._head = self._encoder.template(template.head.rstrip(" "))
        self._back = self._encoder.template(template.back.rstrip(" "), template.close)
        self._answer = self._encoder.template(template.answer, "a")
        self.lead: list[int] = self._encoder.template(template.lead, self._encoder.tail(template.answer))
        """Ids behind `opening` or `turn` that only the reply to come sees; they are not part of later contexts."""
        self._check()

    def opening(self, utterance: str) -> list[int]:
        """Ids up to where the first reply begins."""
        return [*self._head, *self._said(utterance, self.template.head), *self._answer]

    def turn(self, utterance: str) -> list[int]:
        """Ids from behind a closed reply to where the next reply begins."""
        template = self.template
        return [*self._back, *self._said(utterance, template.close + template.back), *self._answer]

    def reply(self, words: str) -> list[int]:
        """Ids of an earlier reply, with the closing token."""
        template = self.template
        said = self._encoder.words(template.gap + words + template.tail, self._encoder.tail("a" + template.answer))
        return [*said, self.stop]

    def closed(self, ids: Sequence[int]) -> list[int]:
        """Sampled ids as a part of later contexts: with the closing token if they lack it, otherwise as they are."""
        return [*ids] if ids and ids[-1] == self.stop else [*ids, self.stop]

    def text(self, content: str) -> list[int]:
        """Ids of somebody's words on their own. Template marks inside them are plain text, so nobody can forge one."""
        return self._encoder.words(content)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without the token that ended them."""
        if ids and ids[-1] in self.stops:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _said(self, words: str, before: str) -> list[int]:
        """Ids of the user's words behind a text of the template."""
        bare = before.rstrip(" ")
        return self._encoder.words(before[len(bare) :] + words.strip(), self._encoder.tail(bare))

    def _check(self) -> None:
        """Compare the pieces of a talk with what the template makes of it as a whole."""
        ids = self.opening(_PROBE[0])
        for turns in range(len(_PROBE) // 2 + 1):
            if turns:
                ids += [*self.reply(_PROBE[2 * turns - 1]), *self.turn(_PROBE[2 * turns])]
            mine, whole = [*ids, *self.lead], self._encoder.template(self.template.render(_PROBE[: 2 * turns + 1]))
            if mine != whole and self.decode(mine) != self.decode(whole):
                raise RlverError(
                    f"{name_of(self.tokenizer)}: a talk that grows message by message is not what its chat template "
                    f"makes of the whole ({self.decode(mine)[-80:]!r}, not {self.decode(whole)[-80:]!r})."
                )
