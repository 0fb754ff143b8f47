"""The eight English combinations (algorithm x thinking x user), several seeds each, beside the published table.

    python benchmarks/combinations.py --steps 30 --seeds 0 1 2 --jobs 2

Each run trains the tiny policy and is benchmarked on the 100 held-out profiles with vanilla and with challenging
users. A run that is done already is not done again. Writes benchmarks/results/combinations.{json,md}.
"""

from __future__ import annotations

import argparse
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training import RESULTS, score_cell, share_cell, train_and_bench

PUBLISHED = {
    ("ppo", False, "vanilla"): (61.7, 47.7),
    ("ppo", True, "vanilla"): (79.2, 59.6),
    ("ppo", False, "challenging"): (19.8, 25.9),
    ("ppo", True, "challenging"): (66.4, 44.7),
    ("grpo", False, "vanilla"): (68.3, None),
    ("grpo", True, "vanilla"): (72.0, None),
}
"""RLVER (arXiv 2507.03112): Sentient Benchmark score, and the score with challenging users, of Qwen2.5-7B."""


def measure(algo: str, think: bool, user: str, seed: int, steps: int, root: Path) -> dict[str, Any]:
    """Train one combination and benchmark it before and after with both users."""
    name = f"{algo}-{'think' if think else 'plain'}-{user}-seed{seed}"
    flags = ["--algo", algo, "--think" if think else "--no-think", "--user", user]
    return {"algo": algo, "think": think, "user": user} | train_and_bench(name, flags, seed, steps, root)


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
        published = PUBLISHED.get((algo, think, user))
        beside = ", ".join("-" if score is None else str(score) for score in published) if published else "-"
        lines.append(
            f"| {algo} | {'yes' if think else 'no'} | {user} | {score_cell(found, 'vanilla')} "
            f"| {share_cell(found, 'fit')} | {share_cell(found, 'fluent')} | {score_cell(found, 'challenging')} "
            f"| {beside} |"
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
