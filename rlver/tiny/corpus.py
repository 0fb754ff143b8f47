"""The corpus on which the tiny policy is pretrained: dialogues with the embedded user in which many replies are poor.

Many replies are those of a generic assistant, which makes lists and solves problems; the others are good. So that a
small model learns from them within minutes, the stages of pretraining lead from single exchanges through short
dialogues to whole ones. The corpus contains only stories, names and phrasings of the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue, Opening
from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Fact, Intention, Language, Profile
from rlver.core.seeds import derive
from rlver.rollout import play, run
from rlver.stories.generate import generate
from rlver.tiny.author import GOOD_SHARE, CorpusAuthor, Line
from rlver.users.embedded.user import EmbeddedUser

_HINT_SHARE = 0.6
"""Share of the single exchanges in which the user hints at the hidden intention. In the others it tells a fact."""


class WrittenDialogue(NamedTuple):
    """A dialogue of the corpus."""

    dialogue: Dialogue
    lines: list[Line]
    """The author's replies."""


def write_exchanges(language: Language, think: bool, count: int, seed: int) -> list[WrittenDialogue]:
    """Write `count` single exchanges: the user tells one fact or gives one hint, and gets a good reply.

    Args:
        think: write a thought before each reply.
    """
    profiles = generate(language, "train", count, derive(seed, "exchanges"))
    rng = random.Random(derive(seed, "exchanges", "things"))
    preset = PRESETS["sage"].model_copy(update={"replies": 1})
    author, user = CorpusAuthor(language, think, good_share=1.0), EmbeddedUser(language)
    dialogues = []
    for number, profile in enumerate(_swap_handles(profile, profiles, rng) for profile in profiles):
        dialogue = Dialogue(profile, preset, think)
        if rng.random() < _HINT_SHARE:
            dialogue.begin(Opening(user.hint(profile, derive(seed, "hint", number)), None, True))
        else:
            fact = rng.randrange(len(profile.story.facts))
            dialogue.begin(Opening(profile.story.facts[fact].say, fact))
        dialogues.append(dialogue)

    async def write_replies() -> None:
        for number, dialogue in enumerate(dialogues):
            dialogue.reply(await author.reply(dialogue, derive(seed, "author", number)))

    run(write_replies())
    return [WrittenDialogue(dialogue, author.lines[dialogue]) for dialogue in dialogues]


def write_corpus(
    language: Language,
    think: bool,
    count: int,
    seed: int,
    good_share: float = GOOD_SHARE,
    replies: int | None = None,
    user_types: Sequence[UserType] = ("vanilla", "challenging"),
) -> list[WrittenDialogue]:
    """Play `count` dialogues between the author and embedded users, equally many for each user type.

    Args:
        think: write a thought before each reply.
        good_share: share of good replies, 0-1.
        replies: number of replies after which a dialogue ends; None means as the preset says.
    """
    corpus = []
    preset = PRESETS["sage"].model_copy(update={"replies": replies} if replies else {})
    profiles = generate(language, "train", count, derive(seed, "corpus"))
    # User types get blocks of profiles. Intentions alternate from profile to profile, so with alternating user types
    # each type would meet only some of the intentions.
    size = count // len(user_types)
    for block, user_type in enumerate(user_types):
        rng = random.Random(derive(seed, "corpus", user_type))
        block_profiles = [
            _swap_handles(profile, profiles, rng) for profile in profiles[block * size : (block + 1) * size]
        ]
        author = CorpusAuthor(language, think, good_share)
        user = EmbeddedUser(language, user_type)
        dialogues = play(block_profiles, author, user, preset, seed=derive(seed, user_type))
        corpus += [WrittenDialogue(dialogue, author.lines[dialogue]) for dialogue in dialogues]
    random.Random(derive(seed, "order")).shuffle(corpus)
    return corpus


def hint_lines(language: Language) -> list[tuple[str, Intention]]:
    """All training sentences with which users hint, each with the hidden intention that it hints at."""
    hints = read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")["hints"]
    return [(line, Intention(need)) for need, lines in hints.items() for line in lines["train"]]


def _swap_handles(profile: Profile, others: Sequence[Profile], rng: random.Random) -> Profile:
    """Replace the handles of a story by others, so that the policy must copy them and cannot memorise them."""
    facts = []
    for fact in profile.story.facts:
        handles = [rng.choice(rng.choice(others).story.facts).handle for _ in range(3)]
        handle = _recombine_handles(handles, profile.language, rng)
        facts.append(Fact(say=fact.say.replace(fact.handle, handle), handle=handle, kind=fact.kind))
    return profile.model_copy(update={"story": profile.story.model_copy(update={"facts": tuple(facts)})})


def _recombine_handles(handles: Sequence[str], language: Language, rng: random.Random) -> str:
    """A new handle from three: the qualifier of the first with the noun of the second. In English, each word gets, with
    a probability of a half, the ending of a word of the third: "the rye roster", "the ryper rostion".

    Stories that training never meets contain words that it never meets, and made-up words prepare the policy for them.
    """
    if language == "zh":
        return handles[0][: (len(handles[0]) + 1) // 2] + handles[1][len(handles[1]) // 2 :]
    article, *words = [*handles[0].split()[:-1], handles[1].split()[-1]]
    endings = handles[2].split()[1:]
    if not words or not endings or article != "the":
        return handles[0]
    new_words = [word[:3] + rng.choice(endings)[-3:] if rng.random() < 0.5 else word for word in words]
    return " ".join([article, *new_words])
