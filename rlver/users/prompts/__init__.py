"""The prompts of the LLM-backed agent: Markdown with `{{slots}}`, and short pieces that go into them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlver.core.data import digest, read_text, read_yaml
from rlver.core.profile import Language

Prompt = Literal["judge", "speak", "open"]
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_COMMENT = re.compile(r"\A<!--.*?-->\s*", re.DOTALL)


def fill(prompt: Prompt, language: Language, slots: Mapping[str, str]) -> str:
    """The prompt with its slots filled, in one pass: what is filled in is never looked at for slots."""
    text = _COMMENT.sub("", read_text(__name__, f"{prompt}.{language}.md")).strip()
    return _SLOT.sub(lambda match: slots[match[1]], text)


def pieces(language: Language) -> dict[str, dict[str, str]]:
    """The short pieces: how a user type behaves, what an intention wants, what a band feels like."""
    return read_yaml(__name__, f"words.{language}.yaml")


def prompts_hash(language: Language) -> str:
    """Eight hex digits that stand for all of it."""
    names = [*(f"{prompt}.{language}.md" for prompt in ("judge", "speak", "open")), f"words.{language}.yaml"]
    return digest(*(read_text(__name__, name) for name in names))


def quote(data: Any) -> str:
    """Somebody's words as a JSON string on one line, in which no mark of the prompt can stand."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", " ")


def quote_talk(messages: Sequence[tuple[str, str]]) -> str:
    """A talk as (speaker, text), one JSON object a line."""
    return "\n".join(quote({speaker: text}) for speaker, text in messages) or "{}"
