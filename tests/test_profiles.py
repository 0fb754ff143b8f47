"""Profiles are read in our format and in the official one, and every broken line is named in one sentence."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.profile import Character, Intention, Profile
from rlver.formats.profile_files import read_profiles, write_profiles
from rlver.stories.generate import generate

OURS: dict[str, Any] = json.loads(generate("en", "train", 1)[0].model_dump_json())
OFFICIAL: dict[str, Any] = {
    "id": "test-1",
    "player": "* 姓名：李小雨\n* 年龄：34岁\n* 性别：女性\n* 职业：花店店主\n\n说话风格：爱用反问。",
    "scene": (
        "# 背景\n"
        "1. **起因：** 李小雨三月借给表弟一辆面包车，约好周末还回来。\n"
        "2. **经过（上个月）：** 小雨觉得面包车停在楼下更让人放心，心里一直很不安。\n"
        "3. 她试图打电话催表弟，表弟却总说再等两天。\n"
        "4. 她担心花市开张以前，自己连一趟货都拉不成。\n"
        "## 玩家不同状态下的反应\n"
        "1. 高兴的时候，我会多说几句关于面包车的话。\n"
        "## 隐藏主题\n希望对方站在我这一边想一想。\n"
    ),
    "main_cha": "回避型",
    "cha_group": ["细心", "倔强"],
    "task": "你希望对方能认真倾听你的抱怨。",
}
OFFICIAL_COUNTS = (66, 66, 66, 64, 63, 60, 58, 57)
"""Number of training profiles per hidden intention, in the order of `Intention`."""


@pytest.fixture(scope="module")
def profiles() -> list[Profile]:
    """A few profiles in both languages."""
    return generate("en", "train", 8) + generate("zh", "train", 8)


@pytest.fixture(scope="module")
def training(official: Path) -> list[Profile]:
    """The official training profiles."""
    return read_profiles(official / "train.jsonl")


@pytest.fixture(scope="module")
def benchmark(official: Path) -> list[Profile]:
    """The public official benchmark profiles."""
    return read_profiles(official / "sentient_open.jsonl")


def ours(**changes: Any) -> dict[str, Any]:
    """A profile in our format as JSON, with some fields changed."""
    return {**OURS, **changes}


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    """A record without one of its fields."""
    return {key: value for key, value in record.items() if key != field}


def write(folder: Path, *records: object) -> Path:
    """A JSON-lines file."""
    path = folder / "profiles.jsonl"
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def message(path: Path) -> str:
    """The sentence with which reading fails."""
    with pytest.raises(RlverError) as caught:
        read_profiles(path)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_profiles_survive_a_round_trip(tmp_path: Path, profiles: list[Profile]) -> None:
    path = tmp_path / "new" / "profiles.jsonl"
    assert write_profiles(path, profiles) == len(profiles)
    assert read_profiles(path) == profiles
    assert [file.name for file in path.parent.iterdir()] == ["profiles.jsonl"]


@given(text=st.text())
def test_any_text_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "profiles.jsonl"
    profile = Profile.model_validate(ours(opening=text))
    write_profiles(path, [profile])
    assert read_profiles(path) == [profile]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\u000b"])
def test_unicode_line_ends_inside_a_string_end_no_line(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, ours(opening=f"one{mark}two"), ours(id="other"))
    assert [profile.opening for profile in read_profiles(path)] == [f"one{mark}two", ""]


def test_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "profiles.jsonl"
    lines = [json.dumps(ours()), "", json.dumps(ours(id="other"))]
    path.write_bytes("\r\n".join(lines).encode())
    assert len(read_profiles(path)) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": ', "not valid JSON"),
        ("not json at all", "not valid JSON"),
        ('{"id": "a"} {"id": "b"}', "not valid JSON"),
        ("[1, 2]", "must be a JSON object, not list"),
        ('"text"', "must be a JSON object, not str"),
        ("null", "must be a JSON object, not NoneType"),
        ("{}", "id: Field required"),
        (json.dumps(ours(id="b", intention="rescue")), "intention"),
        (json.dumps(ours(id="b", language="fr")), "language"),
        (json.dumps(ours(id="b", version=2)), "version"),
        (json.dumps(ours(id="b", colour="blue")), "colour"),
        (json.dumps(without(ours(id="b"), "persona")), "persona"),
        (json.dumps(ours(id="b", story={"id": "s", "facts": []})), "story.facts"),
        (json.dumps(ours()), "unique"),
        (json.dumps({**OFFICIAL, "task": "希望对方离开"}), "希望对方离开"),
        (json.dumps(without(OFFICIAL, "task")), "'task'"),
        (json.dumps(without(OFFICIAL, "player")), "'player'"),
        (json.dumps(without(OFFICIAL, "id")), "'id'"),
        (json.dumps({**OFFICIAL, "scene": "  "}), "'scene'"),
        ('{"id": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "profiles.jsonl"
    path.write_text(f"{json.dumps(ours())}\n\n{line}\n", encoding="utf-8")
    text = message(path)
    assert text.startswith(f"{path}:3: ")
    assert says in text


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "missing.jsonl")
    assert str(tmp_path) in message(tmp_path)
    path = tmp_path / "profiles.jsonl"
    path.write_bytes(b'{"id": "caf\xe9"}\n')
    assert "UTF-8" in message(path) and str(path) in message(path)
    path.write_text("\n \n", encoding="utf-8")
    assert "no profiles" in message(path) and str(path) in message(path)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "bytes.jsonl"
    path.write_bytes(content)
    try:
        assert all(isinstance(record, dict) for _, record in read_objects(path))
    except RlverError as error:
        assert str(path) in str(error)


def test_an_official_profile_becomes_ours(tmp_path: Path) -> None:
    (profile,) = read_profiles(write(tmp_path, OFFICIAL))
    assert profile.id == "test-1"
    assert profile.language == "zh"
    assert profile.intention is Intention.LISTEN
    assert profile.opening == "" and profile.story.topic == ""
    persona = profile.persona
    assert (persona.name, persona.age, persona.gender, persona.occupation) == ("李小雨", 34, "f", "花店店主")
    assert persona.traits == ("细心", "倔强")
    assert persona.character is Character.AVOIDANT
    assert "隐藏主题" not in profile.story.text and "站在我这一边" not in profile.story.text
    assert [fact.say for fact in profile.story.facts] == [
        "我三月借给表弟一辆面包车，约好周末还回来。",
        "我觉得面包车停在楼下更让人放心，心里一直很不安。",
        "我试图打电话催表弟，表弟却总说再等两天。",
        "我担心花市开张以前，自己连一趟货都拉不成。",
    ]
    assert [fact.kind for fact in profile.story.facts] == ["event", "feeling", "tried", "stake"]
    assert "面包车" in {fact.handle for fact in profile.story.facts}


def test_optional_fields_and_both_formats_in_one_file(tmp_path: Path) -> None:
    full = {**OFFICIAL, "id": "test-2", "topic": "家庭", "first_talk": "你有空吗？"}
    profiles = read_profiles(write(tmp_path, OFFICIAL, ours(), full))
    assert [profile.id for profile in profiles] == ["test-1", ours()["id"], "test-2"]
    assert (profiles[2].story.topic, profiles[2].opening) == ("家庭", "你有空吗？")


def test_a_scene_without_usable_sentences_still_gives_a_user(tmp_path: Path) -> None:
    (profile,) = read_profiles(write(tmp_path, {**OFFICIAL, "player": "没有字段", "scene": "短。"}))
    assert profile.story.facts and profile.persona.name


def test_the_official_profiles_load(training: list[Profile], benchmark: list[Profile]) -> None:
    assert len(training) == 500 and len(benchmark) == 70
    assert not {profile.id for profile in training} & {profile.id for profile in benchmark}
    counts = Counter(profile.intention for profile in training)
    assert tuple(counts[intention] for intention in Intention) == OFFICIAL_COUNTS
    assert {profile.intention for profile in benchmark} == set(Intention)


def test_official_profiles_load_without_topic_or_first_talk(training: list[Profile], benchmark: list[Profile]) -> None:
    assert not any(profile.opening for profile in training)
    assert all(profile.opening for profile in benchmark)
    assert not any(profile.story.topic for profile in training)


def test_official_facts_are_told_in_the_first_person(training: list[Profile], benchmark: list[Profile]) -> None:
    for profile in training + benchmark:
        name = profile.persona.name
        sayings = [fact.say for fact in profile.story.facts]
        assert len(set(sayings)) == len(sayings) >= 6
        for fact in profile.story.facts:
            assert "我" in fact.say
            assert name not in fact.say and (len(name) < 3 or name[1:] not in fact.say)
            assert re.fullmatch(r"[^。！？\n]+[。！？]", fact.say)
            assert fact.handle in fact.say
