"""The version and the git revision that stand in every result."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_LONGEST_GIT_CALL = 1.0
"""Seconds. Git answers in about 5 ms, but on a busy machine it may take longer. Nothing waits for it any longer than
this."""


def version() -> str:
    """The installed version; "uninstalled" if the source tree runs without installation."""
    try:
        return installed_version("rlver")
    except PackageNotFoundError:
        return "uninstalled"


@cache
def revision() -> str:
    """The git commit of the source tree, with "+dirty" if tracked files differ from it.

    It is empty if the package does not run from a git checkout of its own, or if git is missing or too slow.
    """
    if not (_ROOT / ".git").exists():  # an installed package may lie inside another project's checkout
        return ""
    command = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+dirty"]
    # Inside a git hook, such variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        git = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, check=True, timeout=_LONGEST_GIT_CALL, text=True
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return git.stdout.strip()


def source() -> dict[str, str]:
    """Version and, if it is known, revision of this package, as logs and run folders hold them."""
    return {"rlver": version()} | ({"revision": revision()} if revision() else {})
