"""The git revision in results: right in a checkout, empty everywhere else, never an error."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlver import version


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with one commit, in which the package seems to lie."""
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a", encoding="utf-8")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "v1")
    monkeypatch.setattr(version, "_ROOT", tmp_path)
    monkeypatch.setattr(version, "_LONGEST_GIT_CALL", 10.0)  # the machine may be busy
    version.revision.cache_clear()
    yield tmp_path
    version.revision.cache_clear()


def test_the_revision_names_the_commit_and_local_changes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert version.revision() == commit
    (checkout / "file").write_text("b", encoding="utf-8")
    assert version.revision() == commit  # cached: a result names the code that was loaded
    version.revision.cache_clear()
    assert version.revision() == f"{commit}+dirty"


def test_a_package_inside_another_checkout_has_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "site-packages").mkdir()
    monkeypatch.setattr(version, "_ROOT", checkout / "site-packages")
    assert version.revision() == ""


@pytest.mark.parametrize("fault", ["no git", "not a repository", "too slow"])
def test_a_revision_that_cannot_be_read_is_empty(fault: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "no git":
        monkeypatch.setenv("PATH", "")
    elif fault == "not a repository":
        (checkout / ".git" / "HEAD").unlink()
    else:
        monkeypatch.setattr(version, "_LONGEST_GIT_CALL", 0.0)
    assert version.revision() == ""
