"""What the site shows besides the pages in docs/: the command line, the measured tables and the architecture.

MkDocs calls these functions while it builds. Pages in docs/ link to files of the repository as they lie beside each
other there, so that the links work on a code host, too; here the links are pointed at the pages of the site.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TABLES = "benchmarks/results"
_EXAMPLES = re.compile(r"(?:^  (?:rlver|curl) .*\n\n?)+", re.MULTILINE)
_LINK = re.compile(r"\]\(((?:\.\./)+)(ARCHITECTURE\.md|benchmarks/results/)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for table in sorted((ROOT / TABLES).glob("*.md")):
        files.append(File.generated(config, f"tables/{table.name}", content=table.read_text("utf-8")))
    for picture in sorted((ROOT / TABLES).glob("*.png")):
        files.append(File.generated(config, f"tables/{picture.name}", abs_src_path=str(picture)))
    architecture = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    files.append(File.generated(config, "architecture.md", content=architecture))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links that leave docs/ at the pages of the site."""
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        target = "architecture.md" if match[2] == "ARCHITECTURE.md" else "tables/"
        return f"]({'../' * depth}{target}"

    return _LINK.sub(inside, markdown)


def command_line() -> str:
    """The reference of the command line as Markdown, written by typer from the commands themselves."""
    command = [sys.executable, "-m", "typer", "rlver.cli.main", "utils", "docs", "--name", "rlver"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    text = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    text = text.replace("# `rlver`\n", "# Command line\n", 1).replace("```console\n$ ", "```text\n")
    text = re.sub(r"^Examples?:$", "**Examples**:", text, flags=re.MULTILINE)
    return _EXAMPLES.sub(_as_block, text)


def _as_block(match: re.Match[str]) -> str:
    lines = [line.strip() for line in match[0].splitlines() if line.strip()]
    return "```sh\n" + "\n".join(lines) + "\n```\n\n"
