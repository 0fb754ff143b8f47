"""Train the tiny policy, plot its learning curve, and compare it with its base on held-out users.

python examples/train_and_plot.py                    # about five minutes on two cores
"""

import argparse

import rlver

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--policy", default="tiny", help="tiny, or a folder with a Hugging Face model")
parser.add_argument("--steps", type=int, default=24)
parser.add_argument("--batch", type=int, default=48)
parser.add_argument("--n", type=int, default=50, help="held-out profiles of the comparison")
parser.add_argument("--out", default="runs/example")
options = parser.parse_args()

run = rlver.train(
    policy=options.policy,
    steps=options.steps,
    batch=options.batch,
    out=options.out,
    on_step=lambda step, metrics: print(f"step {step}: emotion {100 * metrics['reward']:.0f}"),
)
run.plot(f"{options.out}/learning_curve.png")
print(f"learning curve: {options.out}/learning_curve.png")
for folder in (run.base, run.policy):
    print(rlver.evaluate(str(folder), n=options.n))
