"""New profiles by a language model: each is checked, failures are counted, and a second run continues the first."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Model, number

from rlver.cli.main import main
from rlver.core.profile import ChatIntention, Intention, Language
from rlver.formats.profile_files import read_profiles
from rlver.llm.structured import schema_of
from rlver.stories import generate
from rlver.stories.build import Checked, Ingredients, StoryIndex, Written, draw, find_faults

WORDS = "river lamp stone garden letter window market silver engine bridge winter coffee orange".split()  # noqa: SIM905
HAN = "河灯石园信窗市银车桥冬糖橙梯琴书门船雨钟"


def written(language: Language, seed: int, **changes: Any) -> dict[str, Any]:
    """A profile as a good model would write it."""
    rng = random.Random(seed)
    if language == "en":
        story = " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(120)) + "."
        facts = [{"say": f"I lost the {word} on day {i}.", "handle": f"the {word}", "kind": "event"}
                 for i, word in enumerate(WORDS[:9])]  # fmt: skip
        text = {"name": "Ada", "occupation": "baker", "hobbies": ["chess"], "persona": "She is tidy and quick. " * 3,
                "title": "The lamp", "story": story, "facts": facts, "opening": "The lamp broke again."}  # fmt: skip
    else:
        story = "".join(rng.choice(HAN) for _ in range(260)) + "。"
        facts = [
            {"say": f"第{i}天我弄丢了那个{char}。", "handle": f"那个{char}", "kind": "event"}
            for i, char in enumerate(HAN[:9])
        ]
        text = {"name": "阿达", "occupation": "面包师", "hobbies": ["下棋"], "persona": "她很整洁，做事也很利落。" * 5,
                "title": "那盏灯", "story": story, "facts": facts, "opening": "那盏灯又坏了。"}  # fmt: skip
    return text | {"age": 31, "gender": "f"} | changes


class Author(Model):
    """Writes profiles. `spoil` changes the nth profile."""

    def __init__(self, language: Language = "en", spoil: Any = None) -> None:
        super().__init__()
        self.language, self.spoil, self.count = language, spoil, 0

    def build(self, form: str, prompt: str, request: dict[str, Any]) -> str:
        if form == "Checked":
            return json.dumps({"fits": True, "named": "SECRET" in prompt, "why": "so"})
        self.count += 1
        item = written(self.language, number(prompt, request["seed"]))
        return json.dumps(self.spoil(item, self.count) if self.spoil else item, ensure_ascii=False)


def build(server: FakeServer, out: Path, *more: str) -> int:
    return main(["profiles", "build", "--model", f"openai:fake@{server.url}", "--out", str(out), *more])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_second_run_adds_the_missing_profiles(language: Language, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    with FakeServer(Author(language)) as server:
        assert build(server, out, "--n", "10", "--language", language) == 0
        first = out.read_text("utf-8")
        assert build(server, out, "--n", "16", "--language", language) == 0
        calls = server.calls["ok"]
        assert build(server, out, "--n", "16", "--language", language) == 0 and server.calls["ok"] == calls
    assert out.read_text("utf-8").startswith(first)
    profiles = read_profiles(out)
    assert len(profiles) == 16 and {p.intention for p in profiles} == set(Intention)
    assert all(p.language == language and p.opening and len(p.story.facts) == 9 for p in profiles)
    assert main(["bench", "--policy", "scripted:hedge", "--language", language, "--profiles", str(out),
                 "--out", str(tmp_path / "b")]) == 0  # fmt: skip


def test_chit_chat_profiles_run_with_a_model_as_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.jsonl"
    with FakeServer(Author()) as server:
        assert build(server, out, "--n", "4", "--scenario", "chat", "--topic", "music") == 0
        assert {p.intention for p in read_profiles(out)} == set(ChatIntention)
        bench = ["bench", "--policy", "scripted:generic", "--profiles", str(out), "--out", str(tmp_path / "b")]
        assert main([*bench, "--user", f"openai:fake@{server.url}"]) == 0
    summary = json.loads((tmp_path / "b" / "results.json").read_text("utf-8"))["policies"][0]["summary"]
    assert set(summary["intentions"]) == set(ChatIntention)
    capsys.readouterr()
    assert main([*bench[:-1], str(tmp_path / "c")]) == 1 and "chit-chat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"story": "Short."}, "story: 6 characters"),
        ({"story": "x" * 5000}, "story: 5000 characters"),
        ({"opening": "我的灯坏了，怎么都修不好。"}, "wrong language"),
        ({"opening": "What should I do?"}, "names the wish"),
        ({"facts": [{"say": "I lost it.", "handle": "the lamp"}] * 6}, "twice"),
        ({"facts": [{"say": f"I lost it {i}.", "handle": "the lamp"} for i in range(6)]}, "word for word"),
    ],
)
def test_faults_of_a_written_profile_are_named(changes: dict[str, Any], fault: str) -> None:
    good = Written.model_validate(written("en", 1))
    assert find_faults(good, "en", "what should i do") == ""
    assert fault in find_faults(Written.model_validate(written("en", 1, **changes)), "en", "what should i do")


def test_a_profile_that_fails_a_check_is_rewritten_or_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(item: dict[str, Any], count: int) -> dict[str, Any]:
        if count == 1:
            return item | {"story": "SECRET " + item["story"]}
        return item if count != 3 else item | {"opening": "Any advice for me?"}

    with FakeServer(Author(spoil=spoil)) as server:
        assert build(server, tmp_path / "a.jsonl", "--n", "3", "--intention", "advise", "--concurrency", "1") == 0
    assert len(read_profiles(tmp_path / "a.jsonl")) == 3
    same = written("en", 5)
    with FakeServer(Author(spoil=lambda item, count: same)) as server:
        assert build(server, tmp_path / "b.jsonl", "--n", "3", "--concurrency", "1") == 1
        error = capsys.readouterr().err
        assert "2 profiles could not be made" in error and "almost the story of" in error
        server.model = Author()
        assert build(server, tmp_path / "b.jsonl", "--n", "3") == 0
        assert len(read_profiles(tmp_path / "b.jsonl")) == 3
        with (tmp_path / "b.jsonl").open("a") as file:
            file.write('{"version":1,"id":"torn')
        assert build(server, tmp_path / "b.jsonl", "--n", "4") == 0
        assert len(read_profiles(tmp_path / "b.jsonl")) == 4
        assert build(server, tmp_path / "b.jsonl", "--n", "4", "--seed", "1") == 1
        assert "seed was 0 and is 1" in capsys.readouterr().err
        assert build(server, tmp_path / "c.jsonl", "--intention", "money") == 1


def test_ingredients_are_distributed_evenly_and_read_from_files(tmp_path: Path) -> None:
    recipes = [draw(Ingredients(language="en"), i) for i in range(64)]
    assert len({(r.intention, r.topic) for r in recipes}) == 64
    assert recipes == [draw(Ingredients(language="en"), i) for i in range(64)]
    own = Ingredients(language="en", sentences=("A lamp.",), traits=("loud",))
    assert draw(own, 3).sentence == "A lamp." and draw(own, 3).traits == ("loud",)
    (tmp_path / "s.txt").write_text("The cat ran off.\n\n", encoding="utf-8")
    with FakeServer(Author()) as server:
        server.keep_requests = True
        assert build(server, tmp_path / "p.jsonl", "--n", "1", "--sentences", str(tmp_path / "s.txt")) == 0
        assert "The cat ran off." in server.requests[0]["messages"][0]["content"]
        assert build(server, tmp_path / "q.jsonl", "--sentences", str(tmp_path / "none.txt")) == 1


def test_only_near_duplicates_are_recognised() -> None:
    for language in ("en", "zh"):
        profiles = generate(language, "train", 8)  # type: ignore[arg-type]
        stories = StoryIndex(profiles)
        assert all(stories.duplicate_of(profile.story.text, language) for profile in profiles)  # type: ignore[arg-type]
        other = Written.model_validate(written(language, 3)).story  # type: ignore[arg-type]
        assert stories.duplicate_of(other, language) == ""  # type: ignore[arg-type]


def test_schemas_are_complete_and_strict() -> None:
    schema = schema_of(Written)
    fact = schema["properties"]["facts"]["items"]
    assert fact["required"] == ["say", "handle", "kind"] and fact["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema) and schema["properties"]["gender"]["enum"] == ["f", "m"]
    assert Checked.model_validate({"fits": "yes", "named": "否"}).fits
