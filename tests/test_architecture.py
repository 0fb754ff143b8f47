"""The import graph points one way, and the core stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "rlver"
STOREYS = {
    "core": 0,
    "version": 0,
    "text": 1,
    "stories": 2,
    "llm": 1,
    "formats": 1,
    "rollout": 1,
    "inference": 2,
    "policies": 3,
    "users": 3,
    "users.calibration": 4,
    "evaluation": 4,
    "serve": 4,
    "train": 5,
    "tiny": 6,
    "api": 7,
    "cli": 8,
    "__main__": 9,
}
"""The storeys of the house. A module may import from its own place and from lower storeys."""


def _place(module: str) -> str:
    """The place of a module such as `users.calibration.fit`: the longest name in `STOREYS` that it begins with."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in STOREYS)


def _imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.removeprefix("rlver.") for module in modules if module.startswith("rlver.")}


def _modules() -> dict[str, set[str]]:
    """What each module of the package imports from the package."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): _imports(path)
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


def test_every_import_points_down() -> None:
    for module, imports in _modules().items():
        for other in imports:
            here, there = _place(module), _place(other)
            assert here == there or STOREYS[there] < STOREYS[here], f"rlver.{module} imports rlver.{other}"


def test_every_storey_exists() -> None:
    """A storey without modules would be a leftover, and hide wrong imports."""
    assert {_place(module) for module in _modules()} == set(STOREYS)


def test_the_core_needs_no_torch() -> None:
    code = "import sys, rlver.core.dialogue, rlver.core.transcript, rlver.users; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
