"""A miniature of the demo for continuous integration: two minutes on two cores, in which the score must improve.

python benchmarks/mini_demo.py FOLDER

The base is pretrained for a third of the usual time, so it starts lower and ends lower than the demo's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rlver.tiny.pretrain import PretrainConfig, pretrain

# Few steps at high rates, most of them on whole talks: those are what the training goes on from.
BASE = PretrainConfig(
    hint_steps=60, exchange_steps=40, short_steps=90, steps=160, dialogues=300, lr=4e-3, matrix_lr=1e-2
)
LEAST_GAIN = 20


def main() -> None:
    """Pretrain a base, run a short demo from it, and fail if the trained policy does not beat the base clearly."""
    began, out = time.monotonic(), Path(sys.argv[1])
    base = pretrain(BASE, out / "base")
    print(f"pretrained in {time.monotonic() - began:.0f} s", flush=True)
    command = ["-m", "rlver", "demo", "--policy", str(base), "--steps", "8", "--n", "64", "--no-terminal"]
    subprocess.run([sys.executable, *command, "--out", str(out / "demo")], check=True)
    summary = json.loads((out / "demo" / "summary.json").read_text(encoding="utf-8"))
    before, after = summary["base"]["score"], summary["trained"]["score"]
    print(f"base {before:.1f} -> trained {after:.1f} in {time.monotonic() - began:.0f} s")
    if after < before + LEAST_GAIN:
        sys.exit("The miniature demo did not improve the score.")


if __name__ == "__main__":
    main()
