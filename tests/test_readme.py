"""Every command of the README about models behind endpoints runs as it stands, with a server that plays the models."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from test_build import Author

from rlver.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
RECIPES = README[README.index("**Put any model on either side.**") : README.index("**Train** with")]
OFFICIAL = README[README.index("Official transcripts go into") : README.index("**Look at users**")]


def commands(text: str) -> list[list[str]]:
    """The commands in the shell blocks of a text, as words after `rlver`."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("rlver ")]


def test_recipes_with_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(RECIPES)
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
    for words in commands(OFFICIAL):
        assert main(words) == 0, words


def test_help_teaches_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in ("bench", "leaderboard", "compare", "judges", "rejudge", "serve", "import-sage"):
        assert main([command, "--help"]) == 0
        assert "Example" in capsys.readouterr().out
    assert main(["profiles", "build", "--help"]) == 0
    assert "Example" in capsys.readouterr().out
