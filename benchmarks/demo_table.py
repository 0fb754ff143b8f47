"""Tables of several demos: `python benchmarks/demo_table.py SUMMARY.json ...` writes benchmarks/results/demo.md.

for seed in 0 1 2; do make demo SEED=$seed && cp runs/demo/summary.json runs/demo-$seed.json; done
python benchmarks/demo_table.py runs/demo-*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "demo.md"
POLICIES = {
    "base": "base",
    "trained": "trained, reward by turn",
    "terminal_reward": "trained, terminal reward",
    "base_seen_stories": "base, users like those of training",
    "trained_seen_stories": "trained, users like those of training",
}


def row(name: str, result: dict[str, Any]) -> str:
    """One policy as a line of a table."""
    low, high = result["ci95"]
    shares = " | ".join(f"{100 * result[key]:.0f} %" for key in ("success", "failure", "fit", "fluent"))
    return f"| {name} | {result['score']:.1f} ({low:.1f}-{high:.1f}) | {shares} |"


def scores(summary: dict[str, Any], shown: list[str], intention: str) -> str:
    """The scores of one intention as cells."""
    return " | ".join(f"{summary[key]['by_intention'][intention]:.0f}" for key in shown)


def tables(summary: dict[str, Any]) -> list[str]:
    """The tables of one demo."""
    where = f"{summary['n']} held-out profiles, {summary['user_type']} users, preset {summary['preset']}"
    baselines = {name.removeprefix("scripted:"): score for name, score in summary["baselines"].items()}
    shown = [key for key in POLICIES if key in summary]
    return [
        f"## Seed {summary['seed']}",
        "",
        f"{where}; {summary['seconds']:.0f} s in all on two cores.",
        "",
        "| policy | score (95 % interval) | success | failure | acts that fit | fluent |",
        "|---|---|---|---|---|---|",
        *(row(name, summary[key]) for key, name in POLICIES.items() if key in summary),
        "",
        f"Scripted, same users: {', '.join(f'{name} {score:.1f}' for name, score in baselines.items())}.",
        "",
        f"| hidden intention | {' | '.join(POLICIES[key] for key in shown)} |",
        "|---" * (len(shown) + 1) + "|",
        *(f"| {intention} | {scores(summary, shown, intention)} |" for intention in summary["base"]["by_intention"]),
        "",
    ]


def main() -> None:
    """Read, write, show."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    summaries = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]
    summaries.sort(key=lambda summary: summary["seed"])
    text = ["# The demo", "", "Command: `make demo SEED=...` for each seed, every figure as it came.", ""]
    for summary in summaries:
        text += tables(summary)
    RESULTS.write_text("\n".join(text), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
