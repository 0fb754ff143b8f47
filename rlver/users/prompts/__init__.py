"""The prompts of a model as user: Markdown files with `{{slots}}`, and short phrases to fill slots with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlver.core.data import digest, fill_prompt, read_text, read_yaml
from rlver.core.profile import Language

Prompt = Literal["judge", "speak", "open"]


def fill(prompt: Prompt, language: Language, slots: Mapping[str, str]) -> str:
    """A prompt with its slots filled; see `fill_prompt`."""
    return fill_prompt(__name__, f"{prompt}.{language}.md", slots)


def phrases(language: Language) -> dict[str, dict[str, str]]:
    """The short phrases: how a user type behaves, what an intention wants, how a band of the emotion feels."""
    return read_yaml(__name__, f"words.{language}.yaml")


def prompts_hash(language: Language) -> str:
    """Eight hexadecimal digits that identify the prompts and phrases of a language."""
    names = [*(f"{prompt}.{language}.md" for prompt in ("judge", "speak", "open")), f"words.{language}.yaml"]
    return digest(*(read_text(__name__, name) for name in names))


def quote(data: Any) -> str:
    """A text from a dialogue as JSON on one line. It can contain no angle bracket, so it cannot forge a fence."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", " ")


def quote_dialogue(messages: Sequence[tuple[str, str]]) -> str:
    """A dialogue as one JSON object per line.

    Args:
        messages: (speaker, text) pairs.
    """
    return "\n".join(quote({speaker: text}) for speaker, text in messages) or "{}"
