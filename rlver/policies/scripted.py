"""Scripted policies: baselines for trained policies."""

from __future__ import annotations

import random

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue, Reply
from rlver.core.errors import RlverError
from rlver.core.profile import Intention, Language

_ACTS = tuple(intention.value for intention in Intention)
SCRIPTED_NAMES = (*_ACTS, "hedge", "generic", "random", "oracle")
"""The names of the scripts. A script named after one of the eight acts performs it for everyone. `hedge` does a bit of
everything, `generic` speaks in platitudes, and `random` performs any act. `oracle` reads the hidden intention, which a
policy must find out, so it shows the upper limit."""


class ScriptedPolicy:
    """Replies with written sentences that mention the latest fact of the user. See `Policy` for its methods.

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
        self._lines: dict[str, list[str]] = read_yaml("rlver.policies", f"data/scripted.{language}.yaml")

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`. The lines of earlier turns are drawn again, so no state is needed."""
        rng = random.Random(seed)
        used: set[str] = set()
        handle = line = ""
        for turn in range(len(dialogue.turns) + 1):
            handle = last_handle(dialogue, turn)
            line = self._draw(dialogue, handle, rng, used)
            used.add(line)
        text = line.replace("{h}", handle)
        return Reply.parse(text[0].upper() + text[1:], self.think)

    def _draw(self, dialogue: Dialogue, handle: str, rng: random.Random, used: set[str]) -> str:
        """A line of the script that this dialogue has not used yet."""
        key = self._name
        if key == "oracle":
            key = dialogue.profile.intention.value
        elif key == "random":
            key = rng.choice(_ACTS)
        lines = self._lines[key if handle else "generic"]
        return rng.choice([line for line in lines if line not in used] or lines)


def last_handle(dialogue: Dialogue, turns: int | None = None) -> str:
    """The handle of the latest fact that the user has told; empty if no told fact has one.

    Args:
        turns: number of turns to look at; None looks at all.
    """
    told_facts = [dialogue.opening_fact, *(turn.reaction.fact for turn in dialogue.turns[:turns] if turn.reaction)]
    facts = dialogue.profile.story.facts
    return next((facts[i].handle for i in reversed(told_facts) if i is not None and facts[i].handle), "")
