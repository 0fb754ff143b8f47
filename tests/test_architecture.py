"""The import graph points one way, and the core stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "rlver"
FLOORS = {
    "core": 0,
    "version": 0,
    "text": 1,
    "stories": 1,
    "llm": 1,
    "agents": 2,
    "policies": 2,
    "rollout": 3,
    "benchmark": 4,
    "train": 4,
    "tiny": 4,
    "judging": 4,
    "serve": 4,
    "cli": 5,
    "__main__": 5,
}


def _imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.split(".")[1] for module in modules if module.startswith("rlver.")}


def test_nothing_imports_upward() -> None:
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if place == "__init__":
            continue
        for target in _imports(path):
            assert FLOORS[target] <= FLOORS[place], f"{path} imports rlver.{target} from a higher floor"


def test_both_sides_of_a_dialogue_and_training_know_nothing_of_each_other() -> None:
    for place, forbidden in {"agents": "policies", "policies": "agents", "train": "tiny", "benchmark": "train"}.items():
        for path in (ROOT / place).rglob("*.py"):
            assert forbidden not in _imports(path), f"{path} imports rlver.{forbidden}"


def test_the_core_needs_no_torch() -> None:
    code = "import sys, rlver.core.dialogue, rlver.core.transcript, rlver.agents; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
