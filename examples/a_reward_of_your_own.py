"""Train with a reward of your own: here the emotion, less a price for every word.

python examples/a_reward_of_your_own.py --steps 10
"""

import argparse

import rlver

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--policy", default="tiny", help="tiny, or a folder with a Hugging Face model")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--batch", type=int, default=48)
parser.add_argument("--out", default="runs/brief")
options = parser.parse_args()


def brief_and_kind(dialogue: rlver.Dialogue) -> float:
    """The final emotion in [0, 1], less 0.002 for every word of the policy."""
    words = sum(len(turn.reply.split()) for turn in dialogue.turns)
    return dialogue.reward - 0.002 * words


run = rlver.train(
    policy=options.policy,
    steps=options.steps,
    batch=options.batch,
    credit="terminal",
    reward=brief_and_kind,
    out=options.out,
    on_step=lambda step, metrics: print(
        f"step {step}: emotion {100 * metrics['reward']:.0f}, tokens per reply {metrics['tokens_per_reply']:.1f}"
    ),
)
print(run)
