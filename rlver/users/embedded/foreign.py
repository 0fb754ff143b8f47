"""Things and names of other people's stories in a reply."""

from __future__ import annotations

from functools import cache, lru_cache

import ahocorasick

from rlver.core.data import read_yaml
from rlver.core.profile import Language, Profile
from rlver.stories.library import is_built_in, load_stories
from rlver.text.words import words
from rlver.users.embedded.vocabulary import everyday, word_set


@cache
def _belongings(language: Language) -> frozenset[str]:
    """Things that mark a story (heads of handles) and given names: foreign wherever they are not at home."""
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
def _belongings_finder() -> ahocorasick.Automaton:
    """Finds all Chinese belongings of a text at once."""
    finder = ahocorasick.Automaton()
    for mark in _belongings("zh") - {""}:
        finder.add_word(mark, mark)
    finder.make_automaton()
    return finder


@lru_cache(maxsize=20_000)
def _marks(text: str, language: Language) -> frozenset[str]:
    """Marks of stories that a text holds."""
    if language == "zh":
        return frozenset([mark for _, mark in _belongings_finder().iter(text)])
    return _belongings(language) & word_set(text, language)


@lru_cache(maxsize=5_000)
def _at_home(story: str, persona: str, says: tuple[str, ...], language: Language) -> frozenset[str]:
    return _marks("\n".join([story, persona, *says]), language)


def foreign(reply: str, profile: Profile, heard: list[str]) -> int:
    """Marks of other stories. Of a story from elsewhere nobody can tell what is foreign to it."""
    language, story = profile.language, profile.story
    if not is_built_in(story.id, language):
        return 0
    found = _marks(reply, language)
    for text in reversed(heard):
        if not found:
            return 0
        found = found - _marks(text, language)
    if not found:
        return 0
    return len(found - _at_home(story.text, profile.persona.text, tuple(fact.say for fact in story.facts), language))
