"""A chat template, read as the texts that it puts around the messages of a dialogue.

A template is a program. The only thing required of it is that it is append-only: a longer dialogue repeats the text of
a shorter one. To read a template, messages are replaced by marks, the rendered text is cut at the marks, and templates
that render longer dialogues with other pieces are rejected.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.core.think import CLOSE, OPEN

_MARKS = "\u2460\u2461\u2462\u2463\u2464"
_TODAY = datetime.datetime(2024, 7, 26)
"""The date that templates get as today's (Llama 3's own default), because a prompt must not change overnight."""
_ASKS_FOR_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")


@dataclass(frozen=True)
class Template:
    """The pieces of a chat template, in this order:

    head USER before_reply (gap REPLY tail) close before_user USER before_reply ... USER before_reply lead NEXT REPLY
    """

    tokenizer: PreTrainedTokenizerBase
    system: str
    think: bool
    system_in_user: bool
    """Whether the system prompt is part of the first user message, for a template without a system role."""
    head: str = ""
    """Everything before the first user message, with the system prompt."""
    before_reply: str = ""
    gap: str = ""
    """White space before an earlier reply. The next reply brings its own."""
    tail: str = ""
    """White space after an earlier reply."""
    close: str = ""
    """The token that ends a reply."""
    before_user: str = ""
    lead: str = ""
    """Text that only the next reply begins with, such as an empty thought. Later turns do not see it."""
    think_tag: str = ""
    """A tag after `before_reply` that opens a thought. It is left out, because the policy writes its own tags."""

    def render(self, messages: Sequence[str]) -> str:
        """The template's own text of a dialogue, up to the beginning of the next reply.

        Args:
            messages: of the user, the policy, the user, and so on.
        """
        prefix = f"{self.system}\n\n" if self.system_in_user and self.system else ""
        chat = [] if self.system_in_user else [{"role": "system", "content": self.system}]
        for number, content in enumerate(messages):
            role = "assistant" if number % 2 else "user"
            chat.append({"role": role, "content": content if number else prefix + content})
        try:
            text = self.tokenizer.apply_chat_template(
                chat,
                chat_template=_with_fixed_date(self.tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.think,  # the name in Qwen3 and SmolLM3
                thinking=self.think,  # the name in DeepSeek and Granite
                date_string=f"{_TODAY:%d %b %Y}",
                strftime_now=_TODAY.strftime,  # for calls that `_with_fixed_date` cannot replace
            )
        except (ValueError, KeyError, TypeError, AttributeError, TemplateError) as error:
            raise self._rejected(f"cannot be used ({error})") from None
        return str(text).removesuffix(self.think_tag)

    def read(self) -> Template:
        """This template with its pieces filled in.

        Raises:
            RlverError: the template is not append-only.
        """
        text = self.render(_MARKS)
        if any(text.count(mark) != 1 for mark in _MARKS):
            raise self._rejected("does not render every message once")
        parts = [text]
        for mark in _MARKS:
            *before, last = parts
            if mark not in last:
                raise self._rejected("does not render the messages in order")
            parts = [*before, *last.split(mark)]
        head, before_reply, before_user, second_reply, second_user, prompt = parts
        if self.system not in head:
            raise self._rejected("drops the system prompt, or does not put it before the first message")
        rendered = self.render(_MARKS[:1]), self.render(_MARKS[:3])
        expected = head + _MARKS[0] + prompt, head + before_reply.join(_MARKS[:2]) + before_user + _MARKS[2] + prompt
        if (before_reply, before_user) != (second_reply, second_user) or rendered != expected:
            raise self._rejected("is not append-only: the text around a message changes as the dialogue grows")
        return replace(self._with_reply_start(before_reply, prompt)._with_reply_end(before_user), head=head)

    def _with_reply_start(self, before_reply: str, prompt: str) -> Template:
        """Separate the text before every reply from the text before the next one only."""
        common = before_reply if prompt.startswith(before_reply) else prompt
        gap, lead = before_reply.removeprefix(common), prompt.removeprefix(common)
        if gap.strip() or not before_reply.startswith(common):
            raise self._rejected("begins earlier replies in another way than the next one")
        if self.think and lead.lstrip().startswith(OPEN):
            return replace(self, before_reply=common, think_tag=lead)
        if OPEN in lead and CLOSE not in lead:
            raise self._rejected(f"opens a thought ({OPEN}) before every reply, so it needs a policy that thinks")
        return replace(self, before_reply=common, gap=gap, lead=lead)

    def _with_reply_end(self, after_reply: str) -> Template:
        """Find the token that ends a reply."""
        without_tail = after_reply.lstrip()
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        close = max((token for token in added if token.strip() and without_tail.startswith(token)), key=len, default="")
        if not close:
            raise self._rejected(
                "does not end a reply with a token of its own, so the end of a sampled reply cannot be recognised; "
                "use a chat_template that puts the end-of-text token after every reply"
            )
        tail = after_reply[: len(after_reply) - len(without_tail)]
        return replace(self, tail=tail, close=close, before_user=without_tail[len(close) :])

    def _rejected(self, why: str) -> RlverError:
        return RlverError(f"{tokenizer_name(self.tokenizer)}: its chat template {why}.")


def _with_fixed_date(template: str) -> str:
    """The template with every call of `strftime_now` replaced by the text that it returns on `_TODAY`.

    From version 5.24 on, `transformers` passes no functions to a template. A template with a call that cannot be
    replaced fails there instead of showing the date of the day.
    """
    return _ASKS_FOR_TODAY.sub(lambda call: repr(_TODAY.strftime(call["format"])), template)


def read_template(tokenizer: PreTrainedTokenizerBase, system: str, think: bool) -> Template:
    """Read the chat template of a tokenizer.

    If the template has no place for a system prompt, or moves it as the dialogue grows, the prompt becomes the
    beginning of the first user message.

    Args:
        system: the system prompt.
        think: whether the policy writes its thoughts before each reply.

    Raises:
        RlverError: there is no template, or it is not append-only.
    """
    if not tokenizer.chat_template:
        raise RlverError(
            f"{tokenizer_name(tokenizer)}: its tokenizer has no chat template, so it cannot hold a dialogue; use the "
            "chat or instruct version of the model, or put a chat_template.jinja into its folder."
        )
    system = system.strip()
    try:
        return Template(tokenizer, system, think, system_in_user=False).read()
    except RlverError:
        return Template(tokenizer, system, think, system_in_user=True).read()


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name or path of a tokenizer, for error messages."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
