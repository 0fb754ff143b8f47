"""The built-in stories, one YAML file per topic, and their split into training, validation and benchmark stories."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from rlver.core.data import read_yaml
from rlver.core.errors import RlverError
from rlver.core.profile import Fact, Language

Split = Literal["train", "validation", "benchmark"]
TOPICS = ("work", "study", "family", "friendship", "love", "health", "home", "community")
HELD_OUT_TOPIC = "community"
"""All stories of this topic belong to the benchmark, so training never sees the topic."""


class OtherPerson(BaseModel):
    """Somebody else in the story. The generator chooses the name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    relation: str
    gender: Literal["f", "m"]


class Moment(BaseModel):
    """A step of the timeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str
    thought: str


class StorySpec(BaseModel):
    """A story as it is written, with `{a}` and `{b}` in place of the names of the other people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    topic: str
    title: str
    people: dict[Literal["a", "b"], OtherPerson]
    cause: str
    conflict: str
    timeline: tuple[Moment, ...]
    tried: tuple[str, ...]
    now: str
    facts: tuple[Fact, ...] = Field(min_length=9)


@cache
def _topic(language: Language, topic: str) -> tuple[StorySpec, ...]:
    records = read_yaml("rlver.stories", f"data/{language}/{topic}.yaml")
    return tuple(StorySpec.model_validate(record) for record in records)


def load_stories(language: Language, split: Split | None = None) -> list[StorySpec]:
    """The stories of one split, or all stories if `split` is None.

    The last quarter of each topic belongs to the benchmark, the story before it to validation, and the rest to
    training. All of the held-out topic belongs to the benchmark.

    Raises:
        RlverError: the split is unknown.
    """
    if split is not None and split not in get_args(Split):
        raise RlverError(f"unknown split {split!r}; choose one of {', '.join(get_args(Split))}.")
    selected = []
    for topic in TOPICS:
        stories = _topic(language, topic)
        held_out = len(stories) if topic == HELD_OUT_TOPIC else max(1, len(stories) // 4)
        for i, story in enumerate(stories):
            remaining = len(stories) - i
            story_split: Split = "train"
            if remaining <= held_out + 1:
                story_split = "benchmark" if remaining <= held_out else "validation"
            if split in (None, story_split):
                selected.append(story)
    return selected


@cache
def _story_ids(language: Language) -> frozenset[str]:
    return frozenset(story.id for story in load_stories(language))


def is_built_in(story: str, language: Language) -> bool:
    """Whether a built-in story has this id."""
    return story in _story_ids(language)
