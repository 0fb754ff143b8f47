"""What the benchmarks of training compare: one step of GRPO by our trainer, by TRL's, and by bare loops, the floor.

All train the same Qwen2 model with random weights on dialogues with the same user. No reply can close early, so that
every side samples the same number of tokens. Ours and the floor have `step()`, which does one step, and `count()`,
which returns the amount of work that it did.
"""

from sides.floor import Floor
from sides.generate import play_with_generate
from sides.ours import Ours
from sides.trl import Rollout, trl_trainer
from sides.work import (
    Counts,
    Patient,
    Setting,
    make_chat,
    make_line,
    make_model,
    make_tokenizer,
    peak_memory,
    profiles_of,
)

__all__ = [
    "Counts",
    "Floor",
    "Ours",
    "Patient",
    "Rollout",
    "Setting",
    "make_chat",
    "make_line",
    "make_model",
    "make_tokenizer",
    "peak_memory",
    "play_with_generate",
    "profiles_of",
    "trl_trainer",
]
