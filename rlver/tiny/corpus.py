"""The corpus that the tiny policy is pretrained on: real dialogues with the simulated user, mostly done badly.

Most replies are the generic, list-making, problem-solving assistant's; a minority is good. What a good reply does
has little to do with what the user needs: which act helps whom is left for reinforcement learning to find out.
Only training stories, training names and training phrasings of the user are met.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlver.agents.base import UserType
from rlver.agents.embedded import EmbeddedAgent
from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue
from rlver.core.emotion import PRESETS
from rlver.core.profile import Fact, Intention, Language, Profile
from rlver.core.seeds import derive
from rlver.core.think import CLOSE, OPEN
from rlver.rollout import play
from rlver.stories.generate import generate

GOOD_SHARE = 0.4
"""Share of replies that are good: about what leaves the untrained policy where Qwen2.5-7B-Instruct starts."""
APT_SHARE = 0.8
"""Share of good replies whose act is the one that the user hinted at; the others' act is drawn at random."""
INSIGHT_SHARE = 0.75
"""Share of thoughts that name the need, where the user has hinted at it; the reply does not depend on them."""
_SWAP_SHARE = 0.7
_ONSETS = (
    "b",
    "br",
    "c",
    "ch",
    "d",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "w",
)
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ai", "oo")
_CODAS = ("", "", "n", "r", "l", "t", "ck", "st", "ng", "sh", "m", "d")


@dataclass(frozen=True)
class Line:
    """One reply of the corpus."""

    raw: str
    handle: str
    """The thing of the user's story that it takes up; empty if none."""
    deed: str = ""
    """The sentence with which it does its act; empty if it does none."""


class CorpusAuthor:
    """Writes the corpus's replies. It is a policy only in that it takes part in dialogues."""

    spec = "corpus"
    prompt_hash = ""

    def __init__(self, language: Language, think: bool, good_share: float = GOOD_SHARE) -> None:
        self.think = think
        self._good_share = good_share
        self._lines = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")
        self._joint = "" if language == "zh" else " "
        self.written: list[list[Line]] = []

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """See `Policy.start`."""
        self._dialogues = list(dialogues)
        self._rngs = [random.Random(seed) for seed in seeds]
        self.written = [[] for _ in dialogues]

    def reply(self, active: Sequence[int]) -> list[str]:
        """See `Policy.reply`."""
        texts = []
        for index in active:
            dialogue, rng = self._dialogues[index], self._rngs[index]
            line = self._good(dialogue, rng) if rng.random() < self._good_share else self._generic(rng)
            if self.think:
                line = replace(line, raw=f"{OPEN}{self._thought(dialogue, rng)}{CLOSE}{line.raw}")
            self.written[index].append(line)
            texts.append(line.raw)
        return texts

    def _generic(self, rng: random.Random) -> Line:
        lines, kind = self._lines["generic"], rng.random()
        if kind < 0.25:
            parts = [rng.choice(lines["list"])]
        elif kind < 0.33:
            parts = [rng.choice(lines["first"]), rng.choice(lines["refer"])]
        else:
            parts = [rng.choice(lines["first"]), rng.choice(lines["second"])]
        return Line(self._joint.join(parts), "")

    def _good(self, dialogue: Dialogue, rng: random.Random) -> Line:
        handle = _last_handle(dialogue)
        act = dialogue.profile.intention
        if not _hinted(dialogue) or rng.random() >= APT_SHARE:
            act = rng.choice(list(Intention))
        lines = self._lines["acts"][act]
        plain = rng.choice(lines["plain"])
        if not handle:
            return Line(plain, "", plain)
        if rng.random() < 0.5:
            first = rng.choice(lines["with"]).replace("{h}", handle)
            return Line(self._joint.join([first, plain]), handle, first)
        first = rng.choice(self._lines["specific"]).replace("{h}", handle)
        return Line(self._joint.join([first, plain]), handle, plain)

    def _thought(self, dialogue: Dialogue, rng: random.Random) -> str:
        thoughts = self._lines["thoughts"]
        if _hinted(dialogue) and rng.random() < INSIGHT_SHARE:
            return str(rng.choice(thoughts["need"][dialogue.profile.intention]))
        return str(rng.choice(thoughts["empty"]))


def _hinted(dialogue: Dialogue) -> bool:
    """Whether the user has let the need show in what was said so far."""
    return dialogue.opening_hint or any(turn.reaction and turn.reaction.hint for turn in dialogue.turns)


def _last_handle(dialogue: Dialogue) -> str:
    """The thing in the fact that the user told last."""
    reaction = dialogue.turns[-1].reaction if dialogue.turns else None
    fact = reaction.fact if reaction else dialogue.opening_fact
    return dialogue.profile.story.facts[fact].handle if fact is not None else ""


def write_corpus(
    language: Language,
    think: bool,
    count: int,
    seed: int,
    good_share: float = GOOD_SHARE,
    replies: int | None = None,
    users: Sequence[UserType] = ("vanilla", "challenging"),
) -> list[tuple[Dialogue, list[Line]]]:
    """Play `count` dialogues between the author and simulated users, as many of each of the given types.

    Args:
        good_share: share of good replies.
        replies: end dialogues after so many replies; by default as the preset says.
    """
    corpus = []
    preset = PRESETS["sage"].model_copy(update={"replies": replies} if replies else {})
    profiles = generate(language, "train", count, derive(seed, "corpus"))
    # In blocks, not in turn: intentions come in turn, so every other profile would have every other intention.
    size = count // len(users)
    for part, user in enumerate(users):
        rng = random.Random(derive(seed, "corpus", user))
        mine = [_swap_things(profile, profiles, rng) for profile in profiles[part * size : (part + 1) * size]]
        author = CorpusAuthor(language, think, good_share)
        agent = EmbeddedAgent(language, user)
        dialogues = play(mine, author, agent, preset, seed=derive(seed, user))
        corpus += list(zip(dialogues, author.written, strict=True))
    random.Random(derive(seed, "order")).shuffle(corpus)
    return corpus


def _swap_things(profile: Profile, others: Sequence[Profile], rng: random.Random) -> Profile:
    """Put other things into a story, most of the time: copying must not be knowing by heart.

    Half of them are things of other training stories, half are made-up words, long in pieces as a held-out story's
    words are.
    """
    if rng.random() >= _SWAP_SHARE:
        return profile
    facts = []
    for fact in profile.story.facts:
        first, second = (rng.choice(rng.choice(others).story.facts).handle for _ in range(2))
        handle = (_recombined if rng.random() < 0.5 else _made_up)(first, second, profile.language, rng)
        facts.append(Fact(say=fact.say.replace(fact.handle, handle), handle=handle, kind=fact.kind))
    return profile.model_copy(update={"story": profile.story.model_copy(update={"facts": tuple(facts)})})


def _recombined(first: str, second: str, language: Language, rng: random.Random) -> str:
    """The first thing's qualifier with the second thing's noun: "the rye roster"."""
    if language == "zh" or " " not in first or " " not in second:
        return first
    return " ".join([*first.split()[:-1], second.split()[-1]])


def _made_up(first: str, second: str, language: Language, rng: random.Random) -> str:
    """Something that nobody has ever heard of."""
    if language == "zh":
        letters = first + second
        return "".join(rng.choice(letters) for _ in range(rng.randint(2, 4)))
    nouns = [
        "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3)))
        for _ in range(rng.randint(1, 2))
    ]
    return " ".join(["the", *nouns])
