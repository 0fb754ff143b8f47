"""The written stories: one YAML file a topic, and the split of the stories into training and held-out ones."""

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
"""All stories of this topic are in the benchmark: training never sees the topic."""


class Other(BaseModel):
    """Another person of the story; the name is filled in by the generator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    relation: str
    gender: Literal["f", "m"]


class Moment(BaseModel):
    """A step of the timeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str
    thought: str


class StorySpec(BaseModel):
    """A story as written, with `{a}` and `{b}` for the names of the other people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    topic: str
    title: str
    people: dict[Literal["a", "b"], Other]
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
    """The stories of one split, or all. The last quarter of a topic is held out for the benchmark, one story before
    it is for validation, and the held-out topic is for the benchmark as a whole.

    Raises:
        RlverError: unknown split.
    """
    if split is not None and split not in get_args(Split):
        raise RlverError(f"unknown split {split!r}; choose one of {', '.join(get_args(Split))}.")
    chosen = []
    for topic in TOPICS:
        stories = _topic(language, topic)
        held_out = len(stories) if topic == HELD_OUT_TOPIC else max(1, len(stories) // 4)
        for i, story in enumerate(stories):
            left = len(stories) - i
            belongs: Split = "benchmark" if left <= held_out else "validation" if left == held_out + 1 else "train"
            if split in (None, belongs):
                chosen.append(story)
    return chosen


@cache
def _known(language: Language) -> frozenset[str]:
    return frozenset(story.id for story in load_stories(language))


def is_known(story: str, language: Language) -> bool:
    """Whether a story of that id is one of ours."""
    return story in _known(language)
