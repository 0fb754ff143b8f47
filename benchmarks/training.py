"""What the benchmarks of training share: train a policy, then measure it before and after with both kinds of users."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / "results"
USERS = ("vanilla", "challenging")


def rlver(*arguments: str, log: Path) -> str:
    """Run a command and return its standard output; its messages go to `log`."""
    with log.open("a", encoding="utf-8") as messages:
        done = subprocess.run(
            [sys.executable, "-m", "rlver", *arguments], stdout=subprocess.PIPE, stderr=messages, text=True
        )
    if done.returncode:
        raise RuntimeError(f"rlver {' '.join(arguments)} failed; see {log}")
    return done.stdout


def train_and_bench(name: str, flags: Sequence[str], seed: int, steps: int, root: Path) -> dict[str, Any]:
    """Train with these flags and benchmark before and after, as far as that is not done already.

    Returns for `USER/base` and `USER/trained` of both kinds of users: score, ci95, success, failure, fit, fluent.
    """
    folder, log = root / name, root / f"{name}.log"
    root.mkdir(parents=True, exist_ok=True)
    if not (folder / "policy" / "config.json").is_file():
        resume = ["--resume"] if folder.exists() else []
        rlver("train", *flags, "--seed", str(seed), "--steps", str(steps), "--out", str(folder), *resume, log=log)
    row: dict[str, Any] = {"seed": seed, "steps": steps}
    for tested in USERS:
        file = folder / f"bench-{tested}" / "results.json"
        if not file.is_file():
            policies = ["--policy", str(folder / "base"), "--policy", str(folder / "policy")]
            rlver(
                "bench", *policies, "--user", tested, "--seed", str(seed), "--out", str(file.parent), "--json", log=log
            )
        found = json.loads(file.read_text(encoding="utf-8"))
        for stage, result in zip(("base", "trained"), found["policies"], strict=True):
            summary = {key: result["summary"][key] for key in ("score", "ci95", "success", "failure")}
            row[f"{tested}/{stage}"] = summary | {key: result[key] for key in ("fit", "fluent")}
    print(name, {tested: round(row[f"{tested}/trained"]["score"], 1) for tested in USERS}, flush=True)
    return row


def score_cell(rows: Sequence[dict[str, Any]], tested: str) -> str:
    """The mean score before and after, and each seed's after."""
    base = fmean(row[f"{tested}/base"]["score"] for row in rows)
    scores = [row[f"{tested}/trained"]["score"] for row in rows]
    return f"{base:.1f} -> **{fmean(scores):.1f}** ({', '.join(f'{score:.1f}' for score in scores)})"


def share_cell(rows: Sequence[dict[str, Any]], key: str) -> str:
    """The mean of a share with vanilla users, before and after."""
    return " -> ".join(f"{fmean(row[f'vanilla/{stage}'][key] for row in rows):.2f}" for stage in ("base", "trained"))
