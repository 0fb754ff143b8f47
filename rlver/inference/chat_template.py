"""A chat template, read as the texts that it sets around the messages of a talk.

Templates are programs; all that we ask of one is that a talk grows by appending. So it is rendered around marks that
stand for the messages, cut at them, and refused unless longer talks repeat the same pieces.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlver.core.errors import RlverError
from rlver.core.think import CLOSE, OPEN

_MARKS = "\u2460\u2461\u2462\u2463\u2464"
_DAY = datetime.datetime(2024, 7, 26)
"""What a template takes for today (the day that Llama 3's falls back to): a prompt must not change overnight."""


@dataclass(frozen=True)
class Template:
    """head USER answer (gap REPLY tail) close back USER answer ... USER answer lead -> the reply to come."""

    tokenizer: PreTrainedTokenizerBase
    system: str
    think: bool
    folded: bool
    """Whether the system prompt stands at the beginning of the first user message, for want of a role of its own."""
    head: str = ""
    answer: str = ""
    gap: str = ""
    """White space between `answer` and an earlier reply; the reply to come brings its own."""
    tail: str = ""
    """White space between an earlier reply and `close`."""
    close: str = ""
    """The token that ends a reply."""
    back: str = ""
    lead: str = ""
    """What only the reply to come is opened with, such as an empty thought; no later turn sees it."""
    unused: str = ""
    """A tag that opens a thought, behind `answer`; the policy writes its tags itself."""

    def render(self, talk: Sequence[str]) -> str:
        """The template's own text of a talk (user, policy, user ...) up to where the next reply begins."""
        prefix = f"{self.system}\n\n" if self.folded and self.system else ""
        messages = [] if self.folded else [{"role": "system", "content": self.system}]
        for number, content in enumerate(talk):
            role = "assistant" if number % 2 else "user"
            messages.append({"role": role, "content": content if number else prefix + content})
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.think,  # what Qwen3 and SmolLM3 call it
                thinking=self.think,  # DeepSeek and Granite
                date_string=f"{_DAY:%d %b %Y}",
                strftime_now=_DAY.strftime,
            )
        except (ValueError, KeyError, TypeError, AttributeError, TemplateError) as error:
            raise self._refused(f"cannot be used ({error})") from None
        return str(text).removesuffix(self.unused)

    def read(self) -> Template:
        """This template with its pieces."""
        text = self.render(_MARKS)
        if any(text.count(mark) != 1 for mark in _MARKS):
            raise self._refused("does not render every message once")
        parts = [text]
        for mark in _MARKS:
            *before, last = parts
            if mark not in last:
                raise self._refused("does not render the messages in order")
            parts = [*before, *last.split(mark)]
        head, answer, back, other, again, prompt = parts
        if self.system not in head:
            raise self._refused("drops the system prompt, or sets it elsewhere than before the first message")
        grown = (self.render(_MARKS[:1]), self.render(_MARKS[:3]))
        talks = (head + _MARKS[0], head + answer.join(_MARKS[:2]) + back + _MARKS[2])
        if (answer, back) != (other, again) or any(g != t + prompt for g, t in zip(grown, talks, strict=True)):
            raise self._refused("does not let a talk grow by appending: what it sets around a message changes later")
        return replace(self._opened(answer, prompt)._closed(back), head=head)

    def _opened(self, answer: str, prompt: str) -> Template:
        """Tell what opens every reply from what opens the one to come."""
        common = answer if prompt.startswith(answer) else prompt
        gap, lead = answer.removeprefix(common), prompt.removeprefix(common)
        if gap.strip() or not answer.startswith(common):
            raise self._refused("opens earlier replies in another way than the one to come")
        if self.think and lead.lstrip().startswith(OPEN):
            return replace(self, answer=common, unused=lead)
        if OPEN in lead and CLOSE not in lead:
            raise self._refused(f"opens a thought ({OPEN}) before every reply, so the policy must be one that thinks")
        return replace(self, answer=common, gap=gap, lead=lead)

    def _closed(self, back: str) -> Template:
        """Find the token that ends a reply."""
        rest = back.lstrip()
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        close = max((token for token in added if token.strip() and rest.startswith(token)), key=len, default="")
        if not close:
            raise self._refused(
                "does not close a reply with a token of its own, so nobody could tell where a sampled reply ends; "
                "a chat_template that sets the end-of-text token behind every reply would do"
            )
        return replace(self, tail=back[: len(back) - len(rest)], close=close, back=rest[len(close) :])

    def _refused(self, why: str) -> RlverError:
        return RlverError(f"{name_of(self.tokenizer)}: its chat template {why}.")


def read_template(tokenizer: PreTrainedTokenizerBase, system: str, think: bool) -> Template:
    """Read the chat template of a tokenizer around a system prompt.

    A template that has no place for a system prompt, or one that moves as the talk grows, gets it at the beginning of
    the first user message.

    Raises:
        RlverError: there is no template, or none that a talk can grow in by appending.
    """
    if not tokenizer.chat_template:
        raise RlverError(
            f"{name_of(tokenizer)}: its tokenizer has no chat template, so nobody can talk with it; take the chat or "
            "instruct version of the model, or put a chat_template.jinja into its folder."
        )
    system = system.strip()
    try:
        return Template(tokenizer, system, think, folded=False).read()
    except RlverError:
        return Template(tokenizer, system, think, folded=True).read()


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What people know a tokenizer by."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
