"""The corpus that the tiny policy is pretrained on: real dialogues with the simulated user, mostly done badly.

Most replies are the generic, list-making, problem-solving assistant's; a minority is good. So that a small model
learns from them in minutes, single exchanges of a good reply to one thing that the user says come first, then short
dialogues, then whole ones. Only training stories, training names and training phrasings of the user are met.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue, Opening, Reply
from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Fact, Intention, Language, Profile
from rlver.core.seeds import derive
from rlver.core.think import CLOSE, OPEN
from rlver.rollout import play, run
from rlver.stories.generate import generate
from rlver.users.embedded.user import EmbeddedUser

GOOD_SHARE = 0.5
"""Share of replies that are good: about what leaves the untrained policy where Qwen2.5-7B-Instruct starts."""
APT_SHARE = 0.8
"""Share of good replies whose act is the one that the user hinted at or, without a hint, the one that has just done
the user good; the others' act is drawn at random."""
INSIGHT_SHARE = 0.75
"""Share of thoughts that name the need, where the user has hinted at it; the reply does not depend on them."""
_HINT_SHARE = 0.6
"""Share of the single exchanges in which the user lets the need show; in the others a fact is told."""


@dataclass(frozen=True)
class Line:
    """One reply of the corpus."""

    raw: str
    handle: str
    """The thing of the user's story that it takes up; empty if none."""
    start: str = ""
    """The sentence that it begins with: there it is decided what to do for whom."""


class CorpusAuthor:
    """Writes the corpus's replies. It is a policy only in that it takes part in dialogues."""

    spec = "corpus"
    prompt_hash = ""

    def __init__(self, language: Language, think: bool, good_share: float = GOOD_SHARE) -> None:
        self.think = think
        self._good_share = good_share
        self._lines = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")
        self._joint = "" if language == "zh" else " "
        self._rngs: WeakKeyDictionary[Dialogue, random.Random] = WeakKeyDictionary()
        self.written: WeakKeyDictionary[Dialogue, list[Line]] = WeakKeyDictionary()
        """The lines of each dialogue."""

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`."""
        rng = self._rngs.setdefault(dialogue, random.Random(seed))
        line = self._good(dialogue, rng) if rng.random() < self._good_share else self._generic(rng)
        if self.think:
            line = replace(line, raw=f"{OPEN}{self._thought(dialogue, rng)}{CLOSE}{line.raw}")
        self.written.setdefault(dialogue, []).append(line)
        return Reply.parse(line.raw, self.think)

    def _generic(self, rng: random.Random) -> Line:
        lines, kind = self._lines["generic"], rng.random()
        if kind < 0.25:
            parts = [rng.choice(lines["list"])]
        elif kind < 0.33:
            parts = [rng.choice(lines["first"]), rng.choice(lines["refer"])]
        else:
            parts = [rng.choice(lines["first"]), rng.choice(lines["second"])]
        return Line(self._joint.join(parts), "", parts[0])

    def _good(self, dialogue: Dialogue, rng: random.Random) -> Line:
        handle = _last_handle(dialogue)
        act = _apt_act(dialogue)
        if act is None or rng.random() >= APT_SHARE:
            act = rng.choice(list(Intention))
        deed = rng.choice(self._lines["acts"][act])
        if not handle:
            return Line(deed, "", deed)
        then = rng.choice(self._lines["specific"]).replace("{h}", handle)
        return Line(self._joint.join([deed, then]), handle, deed)

    def _thought(self, dialogue: Dialogue, rng: random.Random) -> str:
        thoughts = self._lines["thoughts"]
        if _hinted(dialogue) and rng.random() < INSIGHT_SHARE:
            return str(rng.choice(thoughts["need"][dialogue.profile.intention]))
        return str(rng.choice(thoughts["empty"]))


def _apt_act(dialogue: Dialogue) -> str | None:
    """What somebody who listens would do: what the user hinted at, else what has just done the user good."""
    if _hinted(dialogue):
        return dialogue.profile.intention
    last = dialogue.turns[-1].reaction if dialogue.turns else None
    return last.acts[0] if last is not None and last.acts and last.change > 0 else None


def _hinted(dialogue: Dialogue) -> bool:
    """Whether the user has let the need show in what was said so far."""
    return dialogue.opening_hint or any(turn.reaction and turn.reaction.hint for turn in dialogue.turns)


def _last_handle(dialogue: Dialogue) -> str:
    """The thing in the fact that the user told last."""
    reaction = dialogue.turns[-1].reaction if dialogue.turns else None
    fact = reaction.fact if reaction else dialogue.opening_fact
    return dialogue.profile.story.facts[fact].handle if fact is not None else ""


Written = tuple[Dialogue, list[Line]]
"""A dialogue and the author's lines in it."""


def act_sentences(language: Language) -> dict[str, list[str]]:
    """The sentences by which the author does each act."""
    acts: dict[str, list[str]] = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")["acts"]
    return acts


def hint_lines(language: Language) -> list[tuple[str, Intention]]:
    """Every training line by which users let their need show, and that need."""
    hints = read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")["hints"]
    return [(line, Intention(need)) for need, lines in hints.items() for line in lines["train"]]


def write_exchanges(language: Language, think: bool, count: int, seed: int) -> list[Written]:
    """`count` single exchanges: the user tells one fact, or lets the need show, and gets a good reply."""
    profiles = generate(language, "train", count, derive(seed, "exchanges"))
    rng = random.Random(derive(seed, "exchanges", "things"))
    preset = PRESETS["sage"].model_copy(update={"replies": 1})
    author, user = CorpusAuthor(language, think, good_share=1.0), EmbeddedUser(language)
    dialogues = []
    for number, profile in enumerate(_swap_things(profile, profiles, rng) for profile in profiles):
        dialogue = Dialogue(profile, preset, think)
        if rng.random() < _HINT_SHARE:
            dialogue.begin(Opening(user.hint(profile, derive(seed, "hint", number)), None, True))
        else:
            fact = rng.randrange(len(profile.story.facts))
            dialogue.begin(Opening(profile.story.facts[fact].say, fact))
        dialogues.append(dialogue)

    async def write() -> None:
        for number, dialogue in enumerate(dialogues):
            dialogue.reply(await author.reply(dialogue, derive(seed, "author", number)))

    run(write())
    return [(dialogue, author.written[dialogue]) for dialogue in dialogues]


def write_corpus(
    language: Language,
    think: bool,
    count: int,
    seed: int,
    good_share: float = GOOD_SHARE,
    replies: int | None = None,
    user_types: Sequence[UserType] = ("vanilla", "challenging"),
) -> list[Written]:
    """Play `count` dialogues between the author and simulated users, as many of each of the given types.

    Args:
        good_share: share of good replies.
        replies: end dialogues after so many replies; by default as the preset says.
    """
    corpus = []
    preset = PRESETS["sage"].model_copy(update={"replies": replies} if replies else {})
    profiles = generate(language, "train", count, derive(seed, "corpus"))
    # In blocks, not in turn: intentions come in turn, so every other profile would have every other intention.
    size = count // len(user_types)
    for part, user_type in enumerate(user_types):
        rng = random.Random(derive(seed, "corpus", user_type))
        mine = [_swap_things(profile, profiles, rng) for profile in profiles[part * size : (part + 1) * size]]
        author = CorpusAuthor(language, think, good_share)
        user = EmbeddedUser(language, user_type)
        dialogues = play(mine, author, user, preset, seed=derive(seed, user_type))
        corpus += [(dialogue, author.written[dialogue]) for dialogue in dialogues]
    random.Random(derive(seed, "order")).shuffle(corpus)
    return corpus


def _swap_things(profile: Profile, others: Sequence[Profile], rng: random.Random) -> Profile:
    """Put other things into a story: copying must not be knowing by heart."""
    facts = []
    for fact in profile.story.facts:
        handles = [rng.choice(rng.choice(others).story.facts).handle for _ in range(3)]
        handle = _recombined(handles, profile.language, rng)
        facts.append(Fact(say=fact.say.replace(fact.handle, handle), handle=handle, kind=fact.kind))
    return profile.model_copy(update={"story": profile.story.model_copy(update={"facts": tuple(facts)})})


def _recombined(handles: Sequence[str], language: Language, rng: random.Random) -> str:
    """The first thing's qualifier with the second thing's noun, half of the time ending as words of the third do: "the
    rye roster", "the ryper rostion". Stories that training never meets have words that it never meets."""
    if language == "zh":
        return handles[0][: (len(handles[0]) + 1) // 2] + handles[1][len(handles[1]) // 2 :]
    article, *words = [*handles[0].split()[:-1], handles[1].split()[-1]]
    endings = handles[2].split()[1:]
    if not words or not endings or article != "the":
        return handles[0]
    made = [word[:3] + rng.choice(endings)[-3:] if rng.random() < 0.5 else word for word in words]
    return " ".join([article, *made])
