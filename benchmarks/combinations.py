"""The eight English combinations (algorithm x thinking x user), several seeds each, beside the published table.

    python benchmarks/combinations.py --steps 30 --seeds 0 1 2 --jobs 2

Each run trains the tiny policy and is benchmarked on the 100 held-out profiles with vanilla and with challenging
users. A run that is done already is not done again. Writes benchmarks/results/combinations.{json,md}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {
    ("ppo", False, "vanilla"): (61.7, 47.7),
    ("ppo", True, "vanilla"): (79.2, 59.6),
    ("ppo", False, "challenging"): (19.8, 25.9),
    ("ppo", True, "challenging"): (66.4, 44.7),
    ("grpo", False, "vanilla"): (68.3, None),
    ("grpo", True, "vanilla"): (72.0, None),
}
"""RLVER (arXiv 2507.03112): Sentient Benchmark score, and the score with challenging users, of Qwen2.5-7B."""


def rlver(*arguments: str, log: Path) -> str:
    """Run a command and return its standard output; its messages go to `log`."""
    with log.open("a", encoding="utf-8") as messages:
        done = subprocess.run(
            [sys.executable, "-m", "rlver", *arguments], stdout=subprocess.PIPE, stderr=messages, text=True
        )
    if done.returncode:
        raise RuntimeError(f"rlver {' '.join(arguments)} failed; see {log}")
    return done.stdout


def measure(algo: str, think: bool, user: str, seed: int, steps: int, root: Path) -> dict[str, Any]:
    """Train one combination and benchmark it before and after with both users."""
    name = f"{algo}-{'think' if think else 'plain'}-{user}-seed{seed}"
    folder, log = root / name, root / f"{name}.log"
    root.mkdir(parents=True, exist_ok=True)
    if not (folder / "policy" / "config.json").is_file():
        flags = ["--algo", algo, "--think" if think else "--no-think", "--user", user, "--seed", str(seed)]
        resume = ["--resume"] if folder.exists() else []
        rlver("train", *flags, "--steps", str(steps), "--out", str(folder), *resume, log=log)
    row: dict[str, Any] = {"algo": algo, "think": think, "user": user, "seed": seed, "steps": steps}
    for tested in ("vanilla", "challenging"):
        file = folder / f"bench-{tested}" / "results.json"
        if not file.is_file():
            policies = ["--policy", str(folder / "base"), "--policy", str(folder / "policy")]
            rlver(
                "bench", *policies, "--user", tested, "--seed", str(seed), "--out", str(file.parent), "--json", log=log
            )
        found = json.loads(file.read_text(encoding="utf-8"))
        for stage, result in zip(("base", "trained"), found["policies"], strict=True):
            summary = result["summary"]
            row[f"{tested}/{stage}"] = {
                "score": summary["score"],
                "ci95": summary["ci95"],
                "success": summary["success"],
                "failure": summary["failure"],
                "fit": result["fit"],
                "fluent": result["fluent"],
            }
    print(
        name, {tested: round(row[f"{tested}/trained"]["score"], 1) for tested in ("vanilla", "challenging")}, flush=True
    )
    return row


def table(rows: list[dict[str, Any]], command: str) -> str:
    """The rows as Markdown, one line a combination: mean over seeds, and each seed."""
    lines = [
        "# Eight combinations, tiny policy, English",
        "",
        f"Command: `{command}`",
        "",
        "Scores on the 100 held-out profiles (preset sage), mean over seeds (each seed in brackets), base -> trained.",
        "Published: Qwen2.5-7B with DeepSeek-V3 as user; scores of different users do not compare.",
        "",
        "| algo | think | trained with | vanilla users | fit | fluent | challenging users | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (algo, think, user), group in itertools.groupby(rows, key=lambda row: (row["algo"], row["think"], row["user"])):
        found = list(group)

        def cell(tested: str, found: list[dict[str, Any]] = found) -> str:
            base = fmean(row[f"{tested}/base"]["score"] for row in found)
            scores = [row[f"{tested}/trained"]["score"] for row in found]
            return f"{base:.1f} -> **{fmean(scores):.1f}** ({', '.join(f'{score:.1f}' for score in scores)})"

        def share(key: str, found: list[dict[str, Any]] = found) -> str:
            return " -> ".join(f"{fmean(row[f'vanilla/{s}'][key] for row in found):.2f}" for s in ("base", "trained"))

        published = PUBLISHED.get((algo, think, user))
        beside = ", ".join("-" if score is None else str(score) for score in published) if published else "-"
        lines.append(
            f"| {algo} | {'yes' if think else 'no'} | {user} | {cell('vanilla')} | {share('fit')} | {share('fluent')} "
            f"| {cell('challenging')} | {beside} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/combinations"))
    chosen = parser.parse_args()
    combinations = list(itertools.product(("ppo", "grpo"), (False, True), ("vanilla", "challenging")))
    with ThreadPoolExecutor(chosen.jobs) as pool:
        jobs = {
            (combination, seed): pool.submit(measure, *combination, seed, chosen.steps, chosen.runs)
            for seed in chosen.seeds
            for combination in combinations
        }
        rows = [jobs[combination, seed].result() for combination in combinations for seed in chosen.seeds]
    seeds = " ".join(map(str, chosen.seeds))
    command = f"python benchmarks/combinations.py --steps {chosen.steps} --seeds {seeds}"
    (RESULTS / "combinations.json").write_text(
        json.dumps({"command": command, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    (RESULTS / "combinations.md").write_text(table(rows, command), encoding="utf-8")


if __name__ == "__main__":
    main()
