"""Scripted supporters: baselines that a trained policy must beat, and one that cheats to show the ceiling."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue
from rlver.core.errors import RlverError
from rlver.core.profile import Intention, Language

_ACTS = tuple(intention.value for intention in Intention)
SCRIPTED_NAMES = (*_ACTS, "hedge", "generic", "random", "oracle")
"""The eight acts, each done for everyone; a bit of everything; platitudes; any act by chance; and the `oracle`,
which cheats: it reads the hidden intention that a policy must find out."""


class ScriptedPolicy:
    """Answers with written sentences that take up what the user told last. See `Policy` for its methods.

    Raises:
        RlverError: there is no script of that name.
    """

    think = False
    prompt_hash = ""

    def __init__(self, name: str, language: Language) -> None:
        if name not in SCRIPTED_NAMES:
            raise RlverError(f"scripted:{name}: unknown script; choose one of {', '.join(SCRIPTED_NAMES)}.")
        self.spec = f"scripted:{name}"
        self._name = name
        self._language = language
        self._lines: dict[str, list[str]] = read_yaml("rlver.policies", f"data/scripted.{language}.yaml")

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """See `Policy.start`."""
        self._dialogues = list(dialogues)
        self._rngs = [random.Random(seed) for seed in seeds]
        self._used: list[set[str]] = [set() for _ in dialogues]

    def reply(self, active: Sequence[int]) -> list[str]:
        """See `Policy.reply`."""
        return [self._reply(self._dialogues[i], self._rngs[i], self._used[i]) for i in active]

    def _reply(self, dialogue: Dialogue, rng: random.Random, used: set[str]) -> str:
        key = self._name
        if key == "oracle":
            key = dialogue.profile.intention.value
        elif key == "random":
            key = rng.choice(_ACTS)
        handle = _handle(dialogue)
        lines = self._lines[key if handle else "generic"]
        line = rng.choice([line for line in lines if line not in used] or lines)
        used.add(line)
        text = line.replace("{h}", handle)
        return text[0].upper() + text[1:]


def _handle(dialogue: Dialogue) -> str:
    """The thing in the fact that the user told last, else in one told before; empty if no such fact has one."""
    told = [dialogue.opening_fact, *(turn.reaction.fact for turn in dialogue.turns if turn.reaction)]
    facts = dialogue.profile.story.facts
    return next((facts[i].handle for i in reversed(told) if i is not None and facts[i].handle), "")
