"""Handles and given names in a reply that belong to other stories."""

from __future__ import annotations

from functools import cache, lru_cache

import ahocorasick

from rlver.core.data import read_yaml
from rlver.core.profile import Language, Profile
from rlver.stories.library import is_built_in, load_stories
from rlver.text.words import words
from rlver.users.embedded.vocabulary import everyday, word_set


@cache
def _marks(language: Language) -> frozenset[str]:
    """Words that mark a story: its handles (their last word; in Chinese, the whole handle) and given names."""
    marks = set()
    for story in load_stories(language):
        for fact in story.facts:
            if language == "zh":
                marks.add(fact.handle)
            else:
                marks.add(words(fact.handle, language)[-1])
    names = read_yaml("rlver.stories", f"data/personas.{language}.yaml")["names"]
    people = {name for pools in names.values() for pool in pools.values() for name in pool}
    if language == "zh":
        return frozenset(marks | people)
    return frozenset((marks | {name.lower() for name in people}) - everyday(language))


@cache
def _chinese_finder() -> ahocorasick.Automaton:
    """Finds all Chinese marks in a text in one pass."""
    finder = ahocorasick.Automaton()
    for mark in _marks("zh") - {""}:
        finder.add_word(mark, mark)
    finder.make_automaton()
    return finder


@lru_cache(maxsize=20_000)
def _marks_in(text: str, language: Language) -> frozenset[str]:
    """The marks of any story that a text contains."""
    if language == "zh":
        return frozenset([mark for _, mark in _chinese_finder().iter(text)])
    return _marks(language) & word_set(text, language)


@lru_cache(maxsize=5_000)
def _own_marks(story: str, persona: str, says: tuple[str, ...], language: Language) -> frozenset[str]:
    """The marks that a profile contains."""
    return _marks_in("\n".join([story, persona, *says]), language)


def foreign_marks(reply: str, profile: Profile, utterances: list[str]) -> int:
    """Number of marks of other stories in a reply.

    Marks that the profile or the user's utterances contain do not count. The result is 0 for a story that is not built
    in, because its own marks are unknown.
    """
    language, story = profile.language, profile.story
    if not is_built_in(story.id, language):
        return 0
    marks = _marks_in(reply, language)
    for text in reversed(utterances):
        if not marks:
            return 0
        marks = marks - _marks_in(text, language)
    if not marks:
        return 0
    return len(marks - _own_marks(story.text, profile.persona.text, tuple(fact.say for fact in story.facts), language))
