"""What there is to see in a reply: named cues, each a number that a reader can check by hand.

The agent reads the text of the reply, its own story and the talk so far; nothing of the policy but its words.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Language
from rlver.text.words import script_share, sentences, words
from rlver.users.embedded.acts import NEED_ACTS, tag_sentences
from rlver.users.embedded.echoes import alike, first_three, parroted, repeats
from rlver.users.embedded.facts import taken_up
from rlver.users.embedded.foreign import foreign
from rlver.users.embedded.garble import garbled_bits
from rlver.users.embedded.vocabulary import own_words, plain_words

# Chinese has no spaces, so its lengths are counted in characters: about twice as many for the same content.
_SHORT = {"en": 5, "zh": 8}
_LONG = {"en": 150, "zh": 300}
# A line shorter than this asks for no shorter answer.
_LINE = {"en": 12, "zh": 20}
_ENDING = re.compile(r"[.!?。！？…~～)\]」”\"'*\U0001F300-\U0001FAFF]")
_EMOJI = re.compile(r"[\u2600-\u27BF\U0001F300-\U0001FAFF]")
_LIST_MARK = re.compile(r"(?:^|[\s：:。.])(?:\d+[.)、]|[-*•]\s)")
_LIST_HINT = re.compile(r"[\d\-*•]")


class Cues(NamedTuple):
    """The cues of one reply."""

    acts: tuple[str, ...]
    """Acts seen, the most frequent first."""
    shares: dict[str, float]
    """Share of the sentences that perform each of these acts, 0-1."""
    length: int
    """Words (English) or characters (Chinese), punctuation left out."""
    relative_length: float
    """Its length beside that of what the user said last."""
    short: bool
    long: float
    """How far the reply is over the length that people read, as a share of that length."""
    new_facts: int
    """Facts of the story, told by the user, that this reply is the first to take up."""
    old_facts: int
    """Facts that it takes up again."""
    repeated: float
    """Share of its word sequences that stand in earlier replies already, 0-1."""
    alike: float
    """Share of its pairs of words that stand in the reply before it, 0-1."""
    again: int
    """Earlier replies that were nearly this one."""
    parroted: float
    """Share of the reply that is the user's own wording, counted only in long runs, 0-1."""
    generic: int
    """Sentences that could be said to anyone."""
    cold: int
    warm: int
    unsafe: int
    """Sentences that try to steer the judge rather than help the person."""
    lecture: bool
    """A list, a manual, headings."""
    questions: int
    foreign: int
    """Things and names of other people's stories."""
    sentences: int
    garbled: float
    """Bits by which the least likely stretch of words of its worst sentence falls under what normal ones reach."""
    half_garbled: float
    """The same for the sentence that half of the others are worse than."""
    doubled: int
    """Words said twice in a row."""
    unfinished: bool
    """No closing mark at the end."""
    wrong_language: bool
    echo: int
    """Words of the user's last utterance, everyday ones left out, that the reply takes up (Chinese: pairs of
    characters)."""
    impersonal: int
    """How many replies in a row, this one included, have taken up no fact that was told (of a story that is not
    ours: no such word of anything that the user has said)."""
    same_start: int
    """Earlier replies that begin with the same words."""
    maybe: int
    """Sentences that hedge."""
    tips: int
    """Sentences that propose to do something."""
    sounds_like: bool
    """Opens with a formula of understanding: "it sounds like", "I hear you"."""
    emojis: int


def _impersonal(replies: list[str], taken: list[set[int]], heard: list[str], facts: bool, language: Language) -> int:
    """How many of the last replies in a row take up no fact that was told or, where there are no facts, no word."""
    for count, (reply, known) in enumerate(zip(reversed(replies), reversed(taken), strict=True)):
        if facts and known:
            return count
        if not facts and any(not own_words(reply, language).isdisjoint(own_words(said, language)) for said in heard):
            return count
    return len(replies)


def _lectures(reply: str) -> bool:
    """Whether the reply has two list marks or more."""
    return _LIST_HINT.search(reply) is not None and len(_LIST_MARK.findall(reply)) >= 2


def read_cues(dialogue: Dialogue) -> Cues:
    """The cues of the last reply of a dialogue, seen from the profile's person."""
    profile, language = dialogue.profile, dialogue.profile.language
    reply = dialogue.turns[-1].reply
    earlier = [turn.reply for turn in dialogue.turns[:-1]]
    heard = [dialogue.opening] + [turn.reaction.utterance for turn in dialogue.turns if turn.reaction]
    said = sentences(reply)
    tags = tag_sentences(said, language)
    tokens = words(reply, language)
    plain = plain_words(reply, language)
    length = len(plain) - plain.count("'")

    told = dialogue.told
    taken = [told & known for known in taken_up([*earlier, reply], profile.story.facts, language)]
    old = len(taken[-1].intersection(set().union(*taken[:-1])))

    own = own_words(reply, language)
    readable = said if len(reply) <= 20_000 else sentences(reply[:20_000])
    garbled = sorted([garbled_bits(sentence, language) for sentence in readable]) or [0.0]
    repeated, again = repeats(reply, earlier, language)
    start = first_three(reply, language)
    styles = tags.styles
    return Cues(
        acts=tuple(sorted(tags.acts, key=lambda act: (-tags.acts[act], act))),
        length=length,
        relative_length=length / max(_LINE[language], len(plain_words(heard[-1], language))),
        shares={act: count / tags.sentences for act, count in tags.acts.items()},
        short=length < _SHORT[language],
        long=max(0.0, length / _LONG[language] - 1),
        new_facts=len(taken[-1]) - old,
        old_facts=old,
        repeated=repeated,
        alike=alike(reply, earlier[-1], language) if earlier else 0.0,
        again=again,
        parroted=parroted(reply, heard[-2:], language),
        generic=styles.get("generic", 0),
        cold=styles.get("cold", 0),
        warm=styles.get("warm", 0),
        unsafe=styles.get("unsafe", 0),
        lecture="lecture" in styles or _lectures(reply),
        questions=reply.count("?") + reply.count("？"),
        foreign=foreign(reply, profile, heard),
        sentences=tags.sentences,
        garbled=garbled[-1],
        half_garbled=garbled[len(garbled) // 2],
        # Chinese doubles characters all the time, so only English is checked.
        doubled=sum([a.isalpha() for a, b in pairwise(tokens) if a == b]) if language == "en" else 0,
        unfinished=bool(reply) and not _ENDING.match(reply.rstrip()[-1:]),
        wrong_language=script_share(reply, language) < 0.5,
        echo=len(own & own_words(heard[-1], language)),
        impersonal=_impersonal([*earlier, reply], taken, heard, bool(told), language),
        same_start=sum([start == first_three(other, language) for other in earlier]),
        maybe=styles.get("maybe", 0),
        tips=styles.get("tip", 0),
        sounds_like="sounds_like" in tags.first,
        emojis=0 if reply.isascii() else len(_EMOJI.findall(reply)),
    )


def need_acts(cues: Cues) -> tuple[str, ...]:
    """The acts among the cues that answer some hidden intention."""
    return tuple(act for act in cues.acts if act in NEED_ACTS)
