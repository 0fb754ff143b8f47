"""Stories, personas and the generator: they are numerous, well formed, and split without overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from rlver.core.data import read_yaml
from rlver.core.errors import RlverError
from rlver.core.profile import Fact, Intention, Language, Profile
from rlver.stories.generate import benchmark_profiles, generate
from rlver.stories.library import HELD_OUT_TOPIC, TOPICS, Split, load_stories

LANGUAGES: tuple[Language, ...] = ("en", "zh")
SPLITS: tuple[Split, ...] = get_args(Split)
KINDS = set(get_args(Fact.model_fields["kind"].annotation))

pytestmark = pytest.mark.parametrize("language", LANGUAGES)


def phrasings(node: Any, path: str = "") -> Iterator[tuple[str, list[str], list[str]]]:
    """(key, training lines, held-out lines) for each entry of a speech file that has both."""
    if isinstance(node, dict):
        if "train" in node:
            yield path, node["train"], node["heldout"]
            if "validation" in node:
                yield f"{path}/validation", node["train"], node["validation"]
                yield f"{path}/unseen", node["validation"], node["heldout"]
        else:
            for key, child in node.items():
                yield from phrasings(child, f"{path}/{key}")


def names(language: Language, pool: str) -> set[str]:
    """Given names of one pool."""
    groups = read_yaml("rlver.stories", f"data/personas.{language}.yaml")["names"].values()
    return {name for group in groups for name in group[pool]}


def content(profile: Profile) -> str:
    """A profile as JSON, without its id."""
    return profile.model_copy(update={"id": ""}).model_dump_json()


def test_there_are_enough_stories(language: Language) -> None:
    stories = load_stories(language)
    assert len(stories) >= {"en": 64, "zh": 32}[language]
    assert len({story.id for story in stories}) == len(stories)
    assert {story.topic for story in stories} == set(TOPICS)


def test_splits_share_no_story(language: Language) -> None:
    ids = {split: {story.id for story in load_stories(language, split)} for split in SPLITS}
    assert all(ids.values())
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == len(load_stories(language))
    assert [s for s in SPLITS if any(x.topic == HELD_OUT_TOPIC for x in load_stories(language, s))] == ["benchmark"]
    assert {story.topic for story in load_stories(language, "benchmark")} == set(TOPICS)


def test_an_unknown_split_is_named(language: Language) -> None:
    with pytest.raises(RlverError, match="unknown split 'test'"):
        load_stories(language, "test")  # type: ignore[arg-type]


def test_facts_are_well_formed(language: Language) -> None:
    for story in load_stories(language):
        assert len(story.facts) >= 9
        assert len({fact.handle for fact in story.facts}) == len(story.facts), story.id
        assert len({fact.say for fact in story.facts}) == len(story.facts), story.id
        for fact in story.facts:
            assert fact.handle and fact.handle in fact.say, (story.id, fact)
            assert fact.kind in KINDS
            assert "{" not in fact.handle
        assert {"event", "action", "other", "feeling", "tried", "stake"} == KINDS
        used = "".join([story.cause, story.conflict, story.now, *(fact.say for fact in story.facts)])
        assert all(f"{{{key}}}" in used for key in story.people), story.id


def test_held_out_names_are_new(language: Language) -> None:
    training, heldout = names(language, "train"), names(language, "heldout")
    assert training and heldout and not training & heldout
    for split in SPLITS:
        pool, other = (training, heldout) if split == "train" else (heldout, training)
        for profile in generate(language, split, 100):
            assert profile.persona.name in pool
            if language == "en":
                words = set(profile.story.text.replace("'", " ").replace(".", " ").replace(",", " ").split())
                assert not words & other


def test_the_generator_repeats_itself(language: Language) -> None:
    for split in SPLITS:
        assert generate(language, split, 40, 7) == generate(language, split, 40, 7)
        assert generate(language, split, 40, 7) == generate(language, split, 60, 7)[:40]
    first, second = ([content(p) for p in generate(language, "train", 40, seed)] for seed in (1, 2))
    assert first != second


def test_two_thousand_profiles_are_all_different(language: Language) -> None:
    profiles = generate(language, "train", 2000)
    assert len({content(profile) for profile in profiles}) == 2000
    assert len({profile.id for profile in profiles}) == 2000
    counts = Counter(profile.intention for profile in profiles)
    assert max(counts.values()) - min(counts.values()) <= len(load_stories(language, "train"))
    stories = Counter(profile.story.id for profile in profiles)
    assert max(stories.values()) - min(stories.values()) <= len(Intention)


def test_every_story_meets_every_intention(language: Language) -> None:
    stories = load_stories(language, "train")
    profiles = generate(language, "train", len(stories) * len(Intention))
    assert len({(profile.story.id, profile.intention) for profile in profiles}) == len(profiles)


def test_generated_profiles_are_filled_in(language: Language) -> None:
    for split in SPLITS:
        ids = {story.id for story in load_stories(language, split)}
        for profile in generate(language, split, 100):
            assert profile.story.id in ids
            assert "{" not in profile.story.text + profile.persona.text
            for fact in profile.story.facts:
                assert fact.handle in fact.say and "{" not in fact.say
            assert len(set(profile.persona.traits)) == len(set(profile.persona.hobbies)) == 3


def test_the_benchmark(language: Language) -> None:
    profiles = benchmark_profiles(language)
    assert len(profiles) == 100 and profiles == benchmark_profiles(language)
    counts = Counter(profile.intention for profile in profiles)
    assert set(counts) == set(Intention) and max(counts.values()) - min(counts.values()) <= 8
    assert {profile.story.topic for profile in profiles} == set(TOPICS)


def test_held_out_phrasings_are_new(language: Language) -> None:
    keys = list(phrasings(read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")))
    assert {f"/hints/{intention}" for intention in Intention} <= {key for key, _, _ in keys}
    training = {line for key, lines, _ in keys if not key.endswith("/unseen") for line in lines}
    for key, lines, heldout in keys:
        assert lines and heldout, key
        assert len(set(lines)) == len(lines) and len(set(heldout)) == len(heldout), key
        assert not (training | set(lines)) & set(heldout), key


def test_few_profiles_favour_no_intention(language: Language) -> None:
    """A training step draws a dozen profiles. Over many steps all intentions must be about equally frequent."""
    intentions = [p.intention for seed in range(200) for p in generate(language, "train", 12, seed)]
    share = {intention: intentions.count(intention) / len(intentions) for intention in Intention}
    assert all(0.1 < value < 0.15 for value in share.values()), share
