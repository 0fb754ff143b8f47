"""The tiny policy: a real language model that anyone can pretrain in minutes, to see the whole loop work."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlver.core.data import digest, read_text
from rlver.core.profile import Language


def base_policy(
    language: Language,
    think: bool,
    seed: int,
    root: Path = Path("runs/base"),
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The folder of the untrained tiny policy, pretrained now if it is not there yet.

    Its name carries a hash of all that it is made from, so a folder of that name is that policy.
    """
    from rlver.tiny import corpus, model, pretrain, tokenizer

    config = pretrain.PretrainConfig(language=language, think=think, seed=seed)
    sources = [inspect.getsource(module) for module in (corpus, model, pretrain, tokenizer)]
    data = [
        read_text("rlver.tiny", f"data/replies.{language}.yaml"),
        read_text("rlver.agents", f"data/speech.{language}.yaml"),
    ]
    mark = digest(config.model_dump_json(), *sources, *data)
    folder = root / f"tiny-{language}-{'think' if think else 'plain'}-seed{seed}-{mark}"
    if not (folder / "config.json").is_file():
        part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
        pretrain.pretrain(config, part, on_step)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    return folder
