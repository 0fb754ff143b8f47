"""Which users to train with, and when: challenging ones from the start, vanilla ones throughout, or a curriculum.

    python benchmarks/curriculum.py --steps 60 --seeds 0 1 2 --jobs 2

The tiny policy, GRPO, English, several seeds. Each run is benchmarked on the 100 held-out profiles with vanilla and
with challenging users. A run that is done already is not done again. Writes benchmarks/results/curriculum.{json,md}.
"""

from __future__ import annotations

from typing import Any

from training import arguments, for_all, score_cell, share_cell, train_and_bench, write

WAYS = {
    "starts challenging": ["--user-type", "challenging"],
    "stays vanilla": ["--user-type", "vanilla"],
    "adaptive curriculum": ["--set", "curriculum=adaptive"],
    "fixed schedule": ["--set", "curriculum=schedule", "--set", "schedule={SCHEDULE}"],
}


def main() -> None:
    """Parse, run, write."""
    chosen = arguments(__doc__, "curriculum", steps=60)
    # Vanilla users for a third of the run, then more and more challenging ones, up to half.
    schedule = f"{{{chosen.steps // 3}: 0, {chosen.steps}: 0.5}}"

    def measure(way: str, seed: int) -> dict[str, Any]:
        flags = [flag.replace("{SCHEDULE}", schedule) for flag in WAYS[way]]
        return train_and_bench(f"{way.replace(' ', '-')}-seed{seed}", flags, seed, chosen.steps, chosen.runs)

    rows_by_way = for_all(WAYS, chosen, measure)
    lines = [
        "Scores on the 100 held-out profiles (preset sage), mean over seeds (each seed in brackets), base -> trained.",
        "",
        "| training | vanilla users | fit | fluent | challenging users |",
        "|---|---|---|---|---|",
        *(
            f"| {way} | {score_cell(rows, 'vanilla')} | {share_cell(rows, 'fit')} | {share_cell(rows, 'fluent')} "
            f"| {score_cell(rows, 'challenging')} |"
            for way, rows in rows_by_way.items()
        ),
    ]
    write("curriculum", chosen, "Whom to meet when: tiny policy, GRPO, English", lines, rows_by_way)


if __name__ == "__main__":
    main()
