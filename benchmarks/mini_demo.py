"""A miniature of the demo for continuous integration: a few steps, which must improve the score.

python benchmarks/mini_demo.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run a short demo and fail if the trained policy does not beat the base clearly."""
    out = Path(sys.argv[1]) / "demo"
    command = ["-m", "rlver", "demo", "--steps", "8", "--n", "64", "--no-terminal", "--out", str(out)]
    subprocess.run([sys.executable, *command], check=True)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    base, trained = summary["base"]["score"], summary["trained"]["score"]
    print(f"base {base:.1f} -> trained {trained:.1f} in {summary['seconds']:.0f} s")
    if trained < base + 20:
        sys.exit("The miniature demo did not improve the score.")


if __name__ == "__main__":
    main()
