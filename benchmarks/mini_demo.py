"""A miniature of the demo for continuous integration: about two minutes on two cores, in which the score must improve.

python benchmarks/mini_demo.py FOLDER [SEED]

The base is pretrained for a third of the usual time and ends lower than the demo's. What it learns shows at once with
users like those of training, and less with held-out ones, for which it has copied too little.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rlver.core.transcript import read_transcripts
from rlver.evaluation.compare import compare
from rlver.tiny.pretrain import PretrainConfig, pretrain

# Few steps at high rates, most of them on whole dialogues, because training continues from those.
BASE = PretrainConfig(
    hint_steps=60, exchange_steps=40, short_steps=90, steps=160, dialogues=300, lr=4e-3, matrix_lr=1e-2
)


def main() -> None:
    """Pretrain a base, run a short demo from it, and fail if the trained policy does not beat the base clearly.

    Clearly: the 95 % interval of the gain, profile by profile, begins above 0 with held-out users and with users like
    those of training. More cannot be asked for: another processor rounds the pretraining in another way, and so short
    a pretraining then ends anywhere from 7 to 25 with held-out users, and from 24 to 57 with the others.
    """
    began, out = time.monotonic(), Path(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    base = pretrain(BASE.model_copy(update={"seed": seed}), out / "base")
    print(f"pretrained in {time.monotonic() - began:.0f} s", flush=True)
    command = ["-m", "rlver", "demo", "--policy", str(base), "--seed", str(seed), "--steps", "20", "--n", "100"]
    subprocess.run([sys.executable, *command, "--no-terminal", "--out", str(out / "demo")], check=True)
    lows = []
    for users, suffix in (("held-out users", ""), ("users like those of training", "-seen-stories")):
        logs = [next((out / "demo" / "transcripts").glob(f"*-{name}{suffix}.jsonl")) for name in ("trained", "base")]
        gain = compare(*map(read_transcripts, logs))
        lows.append(gain.ci95[0])
        print(f"{users}: {gain.difference:+.1f} ({gain.ci95[0]:+.1f} to {gain.ci95[1]:+.1f})")
    print(f"{time.monotonic() - began:.0f} s in all")
    if min(lows) <= 0:
        sys.exit("The miniature demo did not improve the score.")


if __name__ == "__main__":
    main()
