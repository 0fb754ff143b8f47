"""A chat template as pieces of token ids, so that a dialogue grows by appending and is never tokenized again.

Three rules hold where the pieces meet:
- White space around a message is stripped.
- A space that the template puts before a message is tokenized together with the message.
- A sampled reply stays as it was sampled, including white space. The template's closing token follows, unless the reply
  ended with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.inference.chat_template import read_template, tokenizer_name
from rlver.inference.encoding import Encoder

_PROBE = ("Hello.", "Yes? I am with you.", "我昨天把钥匙弄丢了。", "Oh no!", "Well: never mind, it's 5 o'clock...")
"""A dialogue to test a template with."""


class ChatFormat:
    """Token ids around the messages of a dialogue: system prompt, user, policy, user, and so on."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, system: str, think: bool = False, stops: Collection[int] = ()
    ) -> None:
        """Read the chat template of a tokenizer.

        Args:
            system: the system prompt.
            think: whether the policy writes its thoughts before each reply.
            stops: ids that end a reply, besides the template's closing token and the end-of-text token.

        Raises:
            RlverError: there is no template, it is not append-only, or its pieces do not join to the ids of the whole.
        """
        self.tokenizer = tokenizer
        self.template = template = read_template(tokenizer, system, think)
        head = template.head.replace(template.system, "")
        self._encoder = Encoder(tokenizer, (head, template.before_reply, template.before_user, template.lead))
        (self.stop,) = self._encoder.template(template.close)
        """Id of the token that closes a reply."""
        stop_ids = (self.stop, tokenizer.eos_token_id, *stops)
        self.stops = frozenset(int(stop) for stop in stop_ids if stop is not None)
        """Ids that end a reply when they are sampled, including `stop`."""
        self._head = self._encoder.template(template.head.rstrip(" "))
        self._before_user = self._encoder.template(template.before_user.rstrip(" "), template.close)
        self._before_reply = self._encoder.template(template.before_reply, "a")
        self.lead: list[int] = self._encoder.template(template.lead, self._encoder.tail(template.before_reply))
        """Ids after `opening` or `turn` that only the next reply sees. Later contexts leave them out."""
        self._check()

    def opening(self, utterance: str) -> list[int]:
        """Ids from the beginning to the first reply."""
        return [*self._head, *self._user(utterance, self.template.head), *self._before_reply]

    def turn(self, utterance: str) -> list[int]:
        """Ids from a closed reply to the next reply."""
        template = self.template
        return [*self._before_user, *self._user(utterance, template.close + template.before_user), *self._before_reply]

    def reply(self, text: str) -> list[int]:
        """Ids of an earlier reply with the closing token."""
        template = self.template
        before = self._encoder.tail("a" + template.before_reply)
        return [*self._encoder.words(template.gap + text + template.tail, before), self.stop]

    def closed(self, ids: Sequence[int]) -> list[int]:
        """The ids of a sampled reply for later contexts. The closing token is added if it is missing."""
        return [*ids] if ids and ids[-1] == self.stop else [*ids, self.stop]

    def text(self, content: str) -> list[int]:
        """Ids of a text on its own. Special tokens in it are plain text, so a message cannot be forged."""
        return self._encoder.words(content)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled reply, without the token that ended it."""
        if ids and ids[-1] in self.stops:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _user(self, utterance: str, before: str) -> list[int]:
        """Ids of an utterance of the user after a text of the template."""
        bare = before.rstrip(" ")
        return self._encoder.words(before[len(bare) :] + utterance.strip(), self._encoder.tail(bare))

    def _check(self) -> None:
        """Check that the pieces of a dialogue join to the template's own rendering of the whole."""
        ids = self.opening(_PROBE[0])
        for turns in range(len(_PROBE) // 2 + 1):
            if turns:
                ids += [*self.reply(_PROBE[2 * turns - 1]), *self.turn(_PROBE[2 * turns])]
            joined, whole = [*ids, *self.lead], self._encoder.template(self.template.render(_PROBE[: 2 * turns + 1]))
            if joined != whole and self.decode(joined) != self.decode(whole):
                raise RlverError(
                    f"{tokenizer_name(self.tokenizer)}: a dialogue built message by message differs from what its chat "
                    f"template renders ({self.decode(joined)[-80:]!r}, not {self.decode(whole)[-80:]!r})."
                )
