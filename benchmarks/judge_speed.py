"""Measures how many reactions the embedded user gives per second on one core.

    python benchmarks/judge_speed.py [--language en] [--rounds 5]

Two loads over 64 dialogues of nine replies, without any language model: `scripted`, whose sentences repeat as those of
a small policy do, and `fresh`, in which every sentence is new. The figures are medians over the rounds. A warm-up,
which reads the lexicon, is left out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median

from rlver.core.data import read_text, read_yaml
from rlver.core.dialogue import Dialogue
from rlver.core.emotion import PRESETS
from rlver.core.profile import Language
from rlver.policies.scripted import last_handle
from rlver.rollout import run
from rlver.stories.generate import generate
from rlver.users.embedded.user import EmbeddedUser

DIALOGUES, REPLIES = 64, 9


def scripted(language: Language) -> Callable[[Dialogue, random.Random], str]:
    """Replies of two sentences drawn from the scripted supporters'."""
    lines = [line for group in read_yaml("rlver.policies", f"data/scripted.{language}.yaml").values() for line in group]
    return lambda dialogue, rng: " ".join(rng.sample(lines, 2)).replace("{h}", last_handle(dialogue))


def fresh(language: Language) -> Callable[[Dialogue, random.Random], str]:
    """Replies of about thirty words in random order."""
    text = read_text("rlver.users.embedded", f"data/reference.{language}.txt")
    words = text.split() if language == "en" else list(text.replace("\n", ""))
    joint = " " if language == "en" else ""
    return lambda dialogue, rng: joint.join([*rng.sample(words, 30), last_handle(dialogue)]) + "."


def reactions_per_second(language: Language, say: Callable[[Dialogue, random.Random], str], seed: int) -> float:
    """Reactions per second of processor time. The time that the replies take is not counted."""
    rng, user = random.Random(seed), EmbeddedUser(language)
    # No user leaves, so every dialogue has all its replies.
    preset = PRESETS["release"].model_copy(update={"clamp": 0.0})
    spent = 0.0

    async def lead() -> None:
        nonlocal spent
        for profile in generate(language, "train", DIALOGUES, seed):
            dialogue = Dialogue(profile, preset)
            dialogue.begin(await user.open(dialogue, seed))
            for _ in range(REPLIES):
                dialogue.reply(say(dialogue, rng))
                start = time.process_time()
                reaction = await user.react(dialogue, seed)
                spent += time.process_time() - start
                dialogue.react(reaction)

    run(lead())
    return DIALOGUES * REPLIES / spent


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for load in (scripted, fresh):
        say = load(options.language)
        reactions_per_second(options.language, say, 0)
        rates = [reactions_per_second(options.language, say, 1 + round_) for round_ in range(options.rounds)]
        print(f"{options.language} {load.__name__:<9} {median(rates):8.0f} reactions per second and core")


if __name__ == "__main__":
    main()
