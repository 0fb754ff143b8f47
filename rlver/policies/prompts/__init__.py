"""System prompts of the policy, as Markdown files. Every transcript carries the hash of its prompt."""

from __future__ import annotations

from rlver.core.data import digest, read_text
from rlver.core.profile import Language


def system_prompt(language: Language, think: bool) -> str:
    """The system prompt of a policy: be a friend, and with `think`, first plan inside `<think></think>`."""
    return read_text("rlver.policies.prompts", f"{'think' if think else 'plain'}.{language}.md").strip()


def prompt_hash(language: Language, think: bool) -> str:
    """Eight hexadecimal digits that identify the system prompt."""
    return digest(system_prompt(language, think))
