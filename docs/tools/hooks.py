"""What the site shows besides the pages in docs/: the command line, the settings, the tables and the architecture.

MkDocs calls `on_files` and `on_page_markdown` while it builds. Pages in docs/ link to files of the repository as they
lie beside each other there, so that the links work on a code host, too; here they are pointed at pages of the site.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TABLES = "benchmarks/results"
SETTINGS = ("rlver.train.config", "rlver.train.settings")
"""Modules that define the sections of the training settings."""

_EXAMPLES = re.compile(r"(?:^  (?:rlver|curl) .*\n\n?)+", re.MULTILINE)
_LINK = re.compile(r"\]\(((?:\.\./)+)(ARCHITECTURE\.md|benchmarks/results/)")
_SECTION = re.compile(r"^#+ `rlver ?([\w -]*)`\n\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_QUOTES = re.compile("[\"']")
_LISTED = re.compile(r"^\* `([\w-]+)`: .*$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for table in sorted((ROOT / TABLES).glob("*.md")):
        files.append(File.generated(config, f"tables/{table.name}", content=table.read_text("utf-8")))
    for picture in sorted((ROOT / TABLES).glob("*.png")):
        files.append(File.generated(config, f"tables/{picture.name}", abs_src_path=str(picture)))
    architecture = "---\nhide: [toc]\n---\n" + (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    files.append(File.generated(config, "architecture.md", content=architecture))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links that leave docs/ at the pages of the site, and put in the table of settings."""
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        target = "architecture.md" if match[2] == "ARCHITECTURE.md" else "tables/"
        return f"]({'../' * depth}{target}"

    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings())
    return _LINK.sub(inside, markdown)


def command_line() -> str:
    """The reference of the command line as Markdown, written by typer from the commands themselves."""
    command = [sys.executable, "-m", "typer", "rlver.cli.main", "utils", "docs", "--name", "rlver"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    text = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    summaries = {name: _first_sentence(words) for name, words in _SECTION.findall(text)}
    parts = re.split(r"(?=^#+ `rlver)", text, flags=re.MULTILINE)
    text = "".join(_with_summaries(part, summaries) for part in parts)
    text = text.replace("# `rlver`\n", "# Command line\n", 1).replace("```console\n$ ", "```text\n")
    text = re.sub(r"^Examples?:$", "**Examples**:", text, flags=re.MULTILINE)
    return _EXAMPLES.sub(_as_block, text)


def _with_summaries(part: str, summaries: dict[str, str]) -> str:
    """A section of the reference whose list of commands says each command's whole first sentence."""
    group = re.match(r"#+ `rlver ?([\w -]*)`", part)
    if group is None or "**Commands**:" not in part:
        return part
    head, commands = part.split("**Commands**:", 1)

    def whole(match: re.Match[str]) -> str:
        return f"* `{match[1]}`: {summaries[f'{group[1]} {match[1]}'.strip()]}"

    return f"{head}**Commands**:{_LISTED.sub(whole, commands)}"


def _first_sentence(words: str) -> str:
    text = " ".join(words.split())
    return re.split(r"(?<=[.?]) (?=[A-Z`])", text)[0]


def _as_block(match: re.Match[str]) -> str:
    lines = [line.strip() for line in match[0].splitlines() if line.strip()]
    return "```sh\n" + "\n".join(lines) + "\n```\n\n"


def settings() -> str:
    """The training settings as tables, one for each class, from the attributes and the strings beneath them."""
    package = griffe.load("rlver", search_paths=[str(ROOT)])
    lines: list[str] = []
    for name in SETTINGS:
        path = name.removeprefix("rlver.")
        if not (ROOT / "rlver" / f"{path.replace('.', '/')}.py").is_file():
            continue
        module = package[path]
        for found in module.classes.values():
            if found.is_alias:
                continue
            fields = [field for field in found.members.values() if isinstance(field, griffe.Attribute)]
            rows = [
                _row(field)
                for field in fields
                if field.annotation and field.name[0] != "_" and "property" not in field.labels
            ]
            if rows:
                title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found.name).removesuffix(" Settings")
                lines += [f"## {title}", "", found.docstring.value if found.docstring else "", ""]
                lines += ["| Setting | Default | Meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(field: griffe.Attribute) -> str:
    value = str(field.value or "")
    default = re.match(r"Field\((?:default=)?([^,()]+|\([^)]*\))", value)
    shown = re.sub(_QUOTES, "", (default[1] if default else value).strip()) or "-"
    words = " ".join((field.docstring.value if field.docstring else "").split())
    if choices := re.search(r"Literal\[(.*?)\]", str(field.annotation)):
        names = [f"`{name}`" for name in re.sub(_QUOTES, "", choices[1]).split(", ")]
        words = f"One of {', '.join(names)}. {words}"
    words = words.replace("|", "\\|")
    return f"| `{field.name}` | `{shown}` | {words} |"
