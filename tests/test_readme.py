"""Every command of the README runs: as it stands, or with less work and with a server that plays the models."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from test_build import Author

from rlver.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def commands(start: str, end: str) -> list[list[str]]:
    """The commands in the shell blocks of the README between two texts, as words after `rlver`."""
    blocks = re.findall(r"```sh\n(.*?)```", README[README.index(start) : README.index(end)], re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("rlver ")]


def smaller(words: list[str]) -> list[str]:
    """The same command with less work: a policy of a few thousand weights, two dialogues."""
    if words[0] == "train" and "--resume" not in words:
        return [*words, "--policy", "mine", "--steps", "1", "--set", "batch=4", "--set", "max_tokens=8"]
    if words[0] == "bench":
        return [*words, "--n", "2"]
    if words[:2] == ["judge", "redteam"]:
        return [*words, "--n", "8"]
    return words


@pytest.fixture
def small(policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a small policy in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_recipes_run(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("I am listening, tell me.\n" * 9))
    found = commands("## Recipes", "**Put any model") + commands("**Train** with", "**Chinese, and")
    found += commands("**Look at users**", "## How a reply is judged")
    assert len(found) >= 14
    with FakeServer() as server:
        for words in found:
            here = [re.sub(r"(simulator=openai:[^@]+).*", rf"\1@{server.url}", word) for word in words]
            assert main(smaller(here)) == 0, words


def test_recipes_with_official_profiles_run(official: Path, small: Path) -> None:
    for file in ("train.jsonl", "sentient_open.jsonl"):
        shutil.copy(official / file, small)
    for words in commands("**Chinese, and", "Official transcripts go into"):
        assert main(smaller(words)) == 0, words


def test_recipes_for_the_judge_run(official: Path, small: Path) -> None:
    shutil.copytree(official.parent / "transcripts", small / "transcripts")
    shutil.copy(official.parents[1] / "esconv" / "dev_strategies.jsonl", small / "strategies.jsonl")
    found = commands("**Check the judge**", "**Look at users**")
    assert len(found) >= 8
    for words in found:
        assert main(smaller(words)) == 0, words


def test_recipes_with_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands("**Put any model", "**Train** with")
    assert len(found) >= 13
    with FakeServer(Author()) as server:
        for words in found:
            if words[0] == "serve":  # needs the demo's folder; see test_serve.py
                continue
            here = [re.sub(r"^(openai:[^@]+).*", rf"\1@{server.url}", word) for word in words]
            if here[0] == "bench":
                here += ["--n", "3"]
            if here[:2] == ["profiles", "build"]:
                here[here.index("--n") + 1] = "4"
            assert main(here) == 0, words
    assert (tmp_path / "runs" / "drift.jsonl").exists()


def test_recipes_with_official_files_run(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("gpt-4.1", "qwen2.5-72b"):
        shutil.copy(official.parent / "transcripts" / "deepseek-v3" / f"{file}.jsonl", tmp_path)
    for words in commands("Official transcripts go into", "**Check the judge**"):
        assert main(words) == 0, words


def test_help_teaches_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in ("bench", "leaderboard", "compare", "judges", "rejudge", "serve", "import-sage"):
        assert main([command, "--help"]) == 0
        assert "Example" in capsys.readouterr().out
    assert main(["profiles", "build", "--help"]) == 0
    assert "Example" in capsys.readouterr().out
