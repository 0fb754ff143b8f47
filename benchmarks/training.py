"""Shared by the benchmarks of training: train policies, and benchmark them before and after with both user types."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
USERS = ("vanilla", "challenging")
K = TypeVar("K")


def arguments(text: str | None, name: str, steps: int) -> argparse.Namespace:
    """The options of such a benchmark; `name` is that of its folder under `runs`."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs") / name)
    return parser.parse_args()


def for_all(
    keys: Iterable[K], chosen: argparse.Namespace, measure: Callable[[K, int], dict[str, Any]]
) -> dict[K, list[dict[str, Any]]]:
    """The rows of every key, one per seed. Several runs go on at the same time."""
    keys = list(keys)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        jobs = {(key, seed): pool.submit(measure, key, seed) for seed in chosen.seeds for key in keys}
        return {key: [jobs[key, seed].result() for seed in chosen.seeds] for key in keys}


def write(name: str, chosen: argparse.Namespace, title: str, lines: Sequence[str], rows: Any) -> None:
    """Write benchmarks/results/NAME.{json,md}, with the command that made them."""
    command = f"python benchmarks/{name}.py --steps {chosen.steps} --seeds {' '.join(map(str, chosen.seeds))}"
    text = "\n".join([f"# {title}", "", f"Command: `{command}`", "", *lines]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    record = json.dumps({"command": command, "rows": rows}, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(record, encoding="utf-8")


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
        resume = ["--resume"] if (folder / "config.json").is_file() else []
        rlver("train", *flags, "--seed", str(seed), "--steps", str(steps), "--out", str(folder), *resume, log=log)
    row: dict[str, Any] = {"seed": seed, "steps": steps}
    for tested in USERS:
        file = folder / f"bench-{tested}" / "results.json"
        if not file.is_file():
            policies = ["--policy", str(folder / "base"), "--policy", str(folder / "policy")]
            options = ["--user-type", tested, "--seed", str(seed), "--out", str(file.parent), "--json"]
            rlver("bench", *policies, *options, log=log)
        results = json.loads(file.read_text(encoding="utf-8"))
        for stage, result in zip(("base", "trained"), results["policies"], strict=True):
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
