"""System prompts of the policy, as Markdown files; their hash enters every transcript."""

from __future__ import annotations

from rlver.core.data import digest, read_text
from rlver.core.profile import Language


def system_prompt(language: Language, think: bool) -> str:
    """The instruction that a policy gets: be a friend, and with `think`, plan inside `<think>` first."""
    return read_text("rlver.policies.prompts", f"{'think' if think else 'plain'}.{language}.md").strip()


def prompt_hash(language: Language, think: bool) -> str:
    """Eight hex digits that stand for the prompt."""
    return digest(system_prompt(language, think))
