"""The tiny policy: a real language model that takes minutes to pretrain, to see the whole training loop at work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from rlver.core.data import digest, read_text
from rlver.core.profile import Language
from rlver.policies.prompts import system_prompt
from rlver.stories import load_stories
from rlver.users.embedded.user import EmbeddedUser

RECIPE = 1
"""Version of the pretraining code. Raise it whenever a change to the code changes the weights."""


ROOT = Path("runs/base")
"""Where base policies are kept, relative to the working directory."""


def tiny_folder(language: Language, think: bool, seed: int, root: Path = ROOT) -> Path:
    """Where the base policy is kept once it has been pretrained.

    The name of the folder contains a hash of the recipe's version, the settings and the training text. So a folder with
    this name holds this policy.
    """
    from rlver.tiny.pretrain import PretrainConfig

    config = PretrainConfig(language=language, think=think, seed=seed)
    data = [
        EmbeddedUser(language).identity,
        system_prompt(language, think),
        read_text("rlver.tiny", f"data/replies.{language}.yaml"),
        read_text("rlver.stories", f"data/personas.{language}.yaml"),
        *(story.model_dump_json() for story in load_stories(language, "train")),
    ]
    recipe_hash = digest(str(RECIPE), config.model_dump_json(), *data)
    return root / f"tiny-{language}-{'think' if think else 'plain'}-seed{seed}-{recipe_hash}"


def base_policy(
    language: Language,
    think: bool,
    seed: int,
    root: Path = ROOT,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The folder of the base policy, which is pretrained now if the folder does not exist yet. See `tiny_folder`.

    Args:
        think: whether the policy thinks before its replies.
        seed: of the corpus and the weights.
        root: the folder that holds the folders of all base policies.
        on_step: called with (step, number of steps, loss in nats per token) after each step.
    """
    from rlver.tiny.pretrain import PretrainConfig, pretrain

    folder = tiny_folder(language, think, seed, root)
    config = PretrainConfig(language=language, think=think, seed=seed)
    root.mkdir(parents=True, exist_ok=True)
    # Runs that start at the same time share one base policy: the first run pretrains it, and the others wait.
    with FileLock(root / f".{folder.name}.lock"):
        if not folder.is_dir():
            part = root / f".part-{folder.name}"
            shutil.rmtree(part, ignore_errors=True)
            pretrain(config, part, on_step)
            part.replace(folder)
    return folder
