"""What the README and the documentation say is typed in: every command into a shell, every Python block into a file.

Each page has one folder and one shell, and its blocks run in order, without a network. Some commands would take long or
need what a test does not have. They are replaced by the rules below, each of which says what it changes and why. What
cannot run at all is listed in `NOT_TYPED` with the place that checks it. Nothing else is left out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from fake_server import FakeServer
from test_build import Author

from rlver.cli.main import app, main
from rlver.train.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SMALL = "--policy mine --steps 1 --set batch=4 --set max_tokens=8 --set eval_n=4"
"""A policy of a few thousand weights (the folder `mine`) and one step of four dialogues."""
SAID = "printf 'I am listening, tell me.\\n%.0s' {1..60} |"
"""What a person types: the same reply, often enough."""

NOT_TYPED = {
    "pip install -e .": "the environment of the tests was made by it",
    "pip wheel --no-deps --wheel-dir dist .": "needs the network for the build environment",
    "pip install dist/rlver-*.whl": "needs the network for what the package depends on",
    "make demo": "tests/test_demo.py runs the command, .ci/run a miniature that must learn",
    "make test": "it is what runs here",
    "make lint": ".ci/run",
    "make docs": ".ci/run",
    "make install": ".ci/run",
    ".venv/bin/python -m pytest tests/test_dialogue.py": "it is what runs here",
}
"""Commands that no shell of ours types, and what checks them instead."""

TRAINED_ELSEWHERE = {
    "docs/recipes/benchmark.md": ("runs/demo/turn/base", "runs/demo/turn/policy"),
    "docs/recipes/serve.md": ("runs/mine/policy",),
}
"""Folders that a page takes as there, because another page trains them: the small policy lies in them."""


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    title: str
    text: str


class Context(NamedTuple):
    """What the rules may put in."""

    server: str
    """Address of the server that plays all models."""
    port: int
    """A free port for `rlver serve`."""


Rule = tuple[str, Callable[[str, Context], str]]
RULES: dict[str, Rule] = {
    "models answer from a server on this machine": (
        r"openai:",
        lambda command, context: re.sub(r"(openai:[\w.-]+)(@\S+)?", rf"\1@{context.server}", command),
    ),
    "training takes one small step": (
        r"^rlver train (?!.*--resume)",
        lambda command, context: f"{command} {SMALL}",
    ),
    "the demo is a small one, on the CPU": (
        r"^rlver demo",
        lambda command, context: f"{command} --device cpu --policy mine --steps 1 --n 8 --no-terminal",
    ),
    "benchmarks take three profiles": (
        r"^rlver bench (?!.*--n )",
        lambda command, context: f"{command} --n 3",
    ),
    "a model writes four profiles": (
        r"^rlver profiles build",
        lambda command, context: re.sub(r"--n \d+", "--n 4", command),
    ),
    "the red team attacks eight profiles": (
        r"^rlver judge redteam",
        lambda command, context: f"{command} --n 8",
    ),
    "a person types": (
        r"^rlver (chat|bench .*--policy human)",
        lambda command, context: f"{SAID} {command}",
    ),
    "servers run in the background on a free port": (
        r"^rlver serve",
        lambda command, context: (
            "kill ${SERVER:-} 2>/dev/null && wait $SERVER || true\n"
            f"{re.sub(r'--port [0-9]+', '', command)} --port {context.port} & SERVER=$!\n"
            f"for _ in {{1..300}}; do curl -sf http://127.0.0.1:{context.port}/v1/models && break; sleep 0.1; done"
        ),
    ),
    "clients ask the server on that port, and fail if it refuses": (
        r"^curl .*localhost:8377",
        lambda command, context: re.sub(
            r"^curl (.*)localhost:8377", rf"curl --fail \g<1>127.0.0.1:{context.port}", command, flags=re.DOTALL
        ),
    ),
    "extras are looked up in pyproject.toml": (
        r"^pip install 'rlver\[(\w+)\]'",
        lambda command, context: re.sub(
            r"pip install 'rlver\[(\w+)\]'", rf"grep -q '^\1 = ' {shlex.quote(str(ROOT))}/pyproject.toml", command
        ),
    ),
}  # fmt: skip
"""What is replaced in commands: a reason, a pattern, and how. The first rules apply first; several may."""

PYTHON_RULES = {
    'policy="tiny"': 'policy="mine"',
    "steps=24": "steps=1, batch=4, max_tokens=8",
}
"""The same for Python: training takes one small step of a small policy."""


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text("utf-8")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.findall(
        r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [Block(*block) for block in found]


def commands(block: Block) -> list[str]:
    """The commands of a shell block. Lines that end in a backslash go on in the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*$", "", re.sub(r" {2,}", " ", line)).strip() for line in lines if line.strip()]


def typed(command: str, context: Context) -> str:
    """The command as the test types it."""
    for pattern, change in RULES.values():
        if re.search(pattern, command):
            command = change(command, context)
    return command


def script(page: Path, folder: Path, context: Context) -> str:
    """All that the page makes a reader do, for bash. Files that it shows are written into the folder."""
    lines = ["set -euo pipefail", "trap 'kill ${SERVER:-} 2>/dev/null || true' EXIT"]
    for number, block in enumerate(blocks(page)):
        if block.title:
            (folder / block.title).write_text(block.text, "utf-8")
        if block.kind == "sh":
            for command in commands(block):
                if command not in NOT_TYPED:
                    lines += [f"echo {shlex.quote('$ ' + command)}", typed(command, context)]
        elif block.kind == "python":
            text = block.text
            for written, shorter in PYTHON_RULES.items():
                text = text.replace(written, shorter)
            file = folder / f"block{number}.py"
            file.write_text(text, "utf-8")
            lines += [f"echo '$ python {file.name}'", f"python {file.name}"]
    return "\n".join(lines) + "\n"


def activated() -> dict[str, str]:
    """The environment of a person who has activated the virtual environment and has no network."""
    own = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    nowhere = "http://127.0.0.1:9"
    return own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": str(ROOT),
        "http_proxy": nowhere, "https_proxy": nowhere, "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere,
        "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if "```sh" in read(name) or "```python" in read(name)])
def test_what_a_page_says_can_be_typed(name: str, request: pytest.FixtureRequest, policy_folder: Path) -> None:
    page, folder = ROOT / name, policy_folder.parent
    for place in TRAINED_ELSEWHERE.get(name, ()):
        shutil.copytree(policy_folder, folder / place)
    text = read(name)
    if "train.jsonl" in text or "transcripts/deepseek-v3" in text:
        _bring_official_files(request.getfixturevalue("official"), folder)
    with FakeServer(Author()) as server, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        context = Context(server.url, free.getsockname()[1])
        free.close()
        typing = folder / "typed.sh"
        typing.write_text(script(page, folder, context), "utf-8")
        done = subprocess.run(
            ["bash", typing.name],
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=activated(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, f"{name}:\n{done.stdout[-6000:]}"


def _bring_official_files(official: Path, folder: Path) -> None:
    """The profiles as they are; of transcripts the first twenty dialogues, and of labels the first four hundred."""
    for file in ("train.jsonl", "sentient_open.jsonl"):
        shutil.copy(official / file, folder)
    (folder / "transcripts" / "deepseek-v3").mkdir(parents=True)
    for transcripts in (official.parent / "transcripts" / "deepseek-v3").glob("*.jsonl"):
        _copy_lines(transcripts, folder / "transcripts" / "deepseek-v3" / transcripts.name, 20)
    for model in ("gpt-4.1", "qwen2.5-72b"):
        shutil.copy(folder / "transcripts" / "deepseek-v3" / f"{model}.jsonl", folder)
    _copy_lines(official.parents[1] / "esconv" / "dev_strategies.jsonl", folder / "strategies.jsonl", 400)


def _copy_lines(source: Path, target: Path, count: int) -> None:
    lines = source.read_text("utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[:count]), "utf-8")


def test_no_rule_is_without_use() -> None:
    all_commands = [
        command for page in PAGES for block in blocks(page) if block.kind == "sh" for command in commands(block)
    ]
    assert set(NOT_TYPED) <= set(all_commands)
    for reason, (pattern, _) in RULES.items():
        assert any(re.search(pattern, command) for command in all_commands), reason
    python = "".join(block.text for page in PAGES for block in blocks(page) if block.kind == "python")
    assert all(written in python for written in PYTHON_RULES)


def test_the_landing_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", [*NAMES, "ARCHITECTURE.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def load(file: Path) -> Any:
    """The module in a file that lies in no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_has_all_of_them_with_their_defaults() -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", load(ROOT / "docs" / "tools" / "hooks.py").settings(), re.MULTILINE)
    defaults = {
        name: str(field.get_default(call_default_factory=True)) for name, field in TrainConfig.model_fields.items()
    }
    assert dict(rows) == defaults


def test_pictures_are_those_of_their_data() -> None:
    for file, content in load(ROOT / "docs" / "make_pictures.py").pictures().items():
        assert file.read_text("utf-8") == content, f"{file}: run python docs/make_pictures.py"


def test_every_place_of_the_architecture_exists() -> None:
    named = re.findall(r"`((?:\w+/)*[\w*.]+(?:/|\.py|\.yaml))`", (ROOT / "ARCHITECTURE.md").read_text("utf-8"))
    assert len(named) > 30
    for place in named:
        roots = (ROOT / "rlver", ROOT)
        assert any(list(root.glob(place.rstrip("/"))) for root in roots), place


@functools.cache
def helps() -> dict[str, str]:
    """The help of every command, by its name: `profiles list`."""

    def walk(command: Any, name: str) -> dict[str, str]:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "300")
            assert main([*name.split(), "--help"]) == 0
        found = {name: shown.getvalue()}
        for part, inner in getattr(command, "commands", {}).items():
            found |= walk(inner, f"{name} {part}".strip())
        return found

    return walk(typer.main.get_command(app), "")


def options(text: str) -> set[str]:
    """The long options that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_options_in_the_text_exist() -> None:
    known = options("".join(helps().values())) | {"--logprobs-mode"}  # the last is vLLM's
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        used = {option for words in re.findall(r"`([^`]+)`", text) for option in options(words)}
        assert used <= known, f"{page.name}: {used - known}"


def test_examples_of_help_name_options_that_exist() -> None:
    examples = [line for text in helps().values() for line in re.findall(r"^ +(rlver .+?) *$", text, re.MULTILINE)]
    assert len(examples) > 25
    for example in examples:
        words = shlex.split(example)[1:]
        name = max((name for name in helps() if words[: len(name.split())] == name.split()), key=len)
        assert options(example) <= options(helps()[name]), example


def test_help_teaches_every_command_by_an_example() -> None:
    without = {"", "profiles", "judge"}  # groups of commands
    assert {name for name, text in helps().items() if "Example" not in text} == without


def test_extras_that_pages_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in re.findall(r"rlver\[(\w+)\]", page.read_text("utf-8"))}
    assert named <= set(extras) and len(named) > 5
