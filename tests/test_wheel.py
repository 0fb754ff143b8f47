"""A wheel holds everything that the package needs: it runs outside of the repository, on its own files."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_an_installed_wheel_lists_profiles_and_runs_a_benchmark(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Without build isolation and dependencies, because tests have no network.
    source = tmp_path / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if name.startswith("rlver/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    wheel_options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path / "dist")]
    run("pip", "wheel", *wheel_options, str(source))
    (wheel,) = (tmp_path / "dist").glob("rlver-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    data = {name for name in names if name.startswith("rlver/") and not name.endswith(".py")}
    assert data and data <= files

    installed = tmp_path / "installed"
    run("pip", "install", "--no-deps", "--quiet", "--target", str(installed), str(wheel))
    where = run("rlver", "profiles", "list", PYTHONPATH=str(installed))
    assert "benchmark" in where
    origin = subprocess.run(
        [sys.executable, "-c", "import rlver; print(rlver.__file__)"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert origin.startswith(str(installed))
    bench = ["bench", "--policy", "scripted:hedge", "--n", "2", "--out", str(tmp_path / "bench")]
    assert "scripted:hedge" in run("rlver", *bench, PYTHONPATH=str(installed))
