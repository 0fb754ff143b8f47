"""The eight English combinations (algorithm x thinking x user), several seeds each, beside the published table.

    python benchmarks/combinations.py --steps 30 --seeds 0 1 2 --jobs 2

Each run trains the tiny policy and is benchmarked on the 100 held-out profiles with vanilla and with challenging
users. A run that is done already is not done again. Writes benchmarks/results/combinations.{json,md}.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from training import arguments, for_all, score_cell, share_cell, train_and_bench, write

PUBLISHED = {
    ("ppo", False, "vanilla"): (61.7, 47.7),
    ("ppo", True, "vanilla"): (79.2, 59.6),
    ("ppo", False, "challenging"): (19.8, 25.9),
    ("ppo", True, "challenging"): (66.4, 44.7),
    ("grpo", False, "vanilla"): (68.3, None),
    ("grpo", True, "vanilla"): (72.0, None),
}
"""RLVER (arXiv 2507.03112): Sentient Benchmark score, and the score with challenging users, of Qwen2.5-7B."""


def measure(algo: str, think: bool, user_type: str, seed: int, steps: int, root: Path) -> dict[str, Any]:
    """Train one combination and benchmark it before and after with both users."""
    name = f"{algo}-{'think' if think else 'plain'}-{user_type}-seed{seed}"
    flags = ["--algo", algo, "--think" if think else "--no-think", "--user-type", user_type]
    return {"algo": algo, "think": think, "user": user_type} | train_and_bench(name, flags, seed, steps, root)


def main() -> None:
    """Parse, run, write."""
    chosen = arguments(__doc__, "combinations", steps=30)
    combinations = itertools.product(("ppo", "grpo"), (False, True), ("vanilla", "challenging"))
    rows_by_key = for_all(combinations, chosen, lambda key, seed: measure(*key, seed, chosen.steps, chosen.runs))
    lines = [
        "Scores on the 100 held-out profiles (preset sage), mean over seeds (each seed in brackets), base -> trained.",
        "Published: Qwen2.5-7B with DeepSeek-V3 as user; scores of different users do not compare.",
        "",
        "| algo | think | trained with | vanilla users | fit | fluent | challenging users | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (algo, think, user_type), rows in rows_by_key.items():
        published = PUBLISHED.get((algo, think, user_type))
        beside = ", ".join("-" if score is None else str(score) for score in published) if published else "-"
        lines.append(
            f"| {algo} | {'yes' if think else 'no'} | {user_type} | {score_cell(rows, 'vanilla')} "
            f"| {share_cell(rows, 'fit')} | {share_cell(rows, 'fluent')} | {score_cell(rows, 'challenging')} "
            f"| {beside} |"
        )
    flat = [row for rows in rows_by_key.values() for row in rows]
    write("combinations", chosen, "Eight combinations, tiny policy, English", lines, flat)


if __name__ == "__main__":
    main()
