"""Whom to meet when: challenging users from the start, vanilla ones throughout, or a curriculum; several seeds each.

    python benchmarks/curriculum.py --steps 24 --seeds 0 1 2 --jobs 2

The tiny policy, GRPO, English. Each run is benchmarked on the 100 held-out profiles with vanilla and with challenging
users. A run that is done already is not done again. Writes benchmarks/results/curriculum.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training import RESULTS, score_cell, share_cell, train_and_bench

WAYS = {
    "starts challenging": ["--user", "challenging"],
    "stays vanilla": ["--user", "vanilla"],
    "adaptive curriculum": ["--set", "curriculum=adaptive"],
    "fixed schedule": ["--set", "curriculum=schedule", "--set", "schedule={SCHEDULE}"],
}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/curriculum"))
    chosen = parser.parse_args()
    # Vanilla users for a third of the run, then more and more challenging ones, up to half.
    schedule = f"{{{chosen.steps // 3}: 0, {chosen.steps}: 0.5}}"
    with ThreadPoolExecutor(chosen.jobs) as pool:
        jobs = {
            (way, seed): pool.submit(
                train_and_bench,
                f"{way.replace(' ', '-')}-seed{seed}",
                [flag.replace("{SCHEDULE}", schedule) for flag in flags],
                seed,
                chosen.steps,
                chosen.runs,
            )
            for seed in chosen.seeds
            for way, flags in WAYS.items()
        }
        rows = {way: [jobs[way, seed].result() for seed in chosen.seeds] for way in WAYS}
    command = f"python benchmarks/curriculum.py --steps {chosen.steps} --seeds {' '.join(map(str, chosen.seeds))}"
    lines = [
        "# Whom to meet when: tiny policy, GRPO, English",
        "",
        f"Command: `{command}`",
        "",
        "Scores on the 100 held-out profiles (preset sage), mean over seeds (each seed in brackets), base -> trained.",
        "",
        "| training | vanilla users | fit | fluent | challenging users |",
        "|---|---|---|---|---|",
        *(
            f"| {way} | {score_cell(found, 'vanilla')} | {share_cell(found, 'fit')} | {share_cell(found, 'fluent')} "
            f"| {score_cell(found, 'challenging')} |"
            for way, found in rows.items()
        ),
    ]
    (RESULTS / "curriculum.json").write_text(
        json.dumps({"command": command, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    (RESULTS / "curriculum.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
