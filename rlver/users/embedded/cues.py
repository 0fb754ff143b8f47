"""The cues of a reply: named numbers that a reader can check by hand.

They depend on the reply, the profile of the user and the dialogue so far. The policy's thoughts and its name have no
influence.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Language
from rlver.text.words import script_share, sentences, words
from rlver.users.embedded.acts import NEED_ACTS, tag_sentences
from rlver.users.embedded.facts import mentioned_facts
from rlver.users.embedded.foreign import foreign_marks
from rlver.users.embedded.garble import garbled_bits
from rlver.users.embedded.repetition import copied_share, first_three, repeated_share, shared_pairs
from rlver.users.embedded.vocabulary import plain_words, topic_words

# Chinese has no spaces, so lengths are counted in characters: about twice as many for the same content.
_SHORT = {"en": 5, "zh": 8}
_LONG = {"en": 150, "zh": 300}
# An utterance that is shorter than this does not ask for a shorter reply.
_SHORT_UTTERANCE = {"en": 12, "zh": 20}
_ENDING = re.compile(r"[.!?。！？…~～)\]」”\"'*\U0001F300-\U0001FAFF]")
_EMOJI = re.compile(r"[\u2600-\u27BF\U0001F300-\U0001FAFF]")
_LIST_MARK = re.compile(r"(?:^|[\s：:。.])(?:\d+[.)、]|[-*•]\s)")
_LIST_HINT = re.compile(r"[\d\-*•]")


class Cues(NamedTuple):
    """The cues of one reply."""

    acts: tuple[str, ...]
    """Dialogue acts of the reply, the most frequent first."""
    shares: dict[str, float]
    """Share of the sentences that perform each of these acts, 0-1."""
    length: int
    """Words (English) or characters (Chinese), without punctuation."""
    relative_length: float
    """Length divided by that of the user's last utterance."""
    short: bool
    """Shorter than five words (Chinese: eight characters)."""
    long: float
    """How far the reply exceeds the length that people read, as a share of that length."""
    new_facts: int
    """Facts that the user has told and this reply is the first to mention."""
    old_facts: int
    """Facts that the user has told and this reply mentions again."""
    repeated: float
    """Share of its n-grams that occur in earlier replies, 0-1."""
    alike: float
    """Share of its word pairs that occur in the previous reply, 0-1."""
    again: int
    """Earlier replies that were nearly the same."""
    parroted: float
    """Share of the reply that is copied from the user, counted in long runs only, 0-1."""
    generic: int
    """Sentences that would suit any person."""
    cold: int
    warm: int
    unsafe: int
    """Sentences that try to steer the judge instead of helping the person."""
    lecture: bool
    """A list, a manual or headings."""
    questions: int
    foreign: int
    """Handles and given names that belong to other stories."""
    sentences: int
    garbled: float
    """Bits by which the worst window of words of the worst sentence falls below the fluency threshold."""
    half_garbled: float
    """The same for the median sentence."""
    doubled: int
    """Words that occur twice in a row."""
    unfinished: bool
    """No closing mark at the end."""
    wrong_language: bool
    echo: int
    """Topic words of the user's last utterance that the reply repeats (Chinese: character pairs)."""
    impersonal: int
    """Length of the current run of replies, this one included, that mention no fact the user has told. If the user has
    told no fact, as in stories without facts: that repeat no topic word of the user."""
    same_start: int
    """Earlier replies that begin with the same three words."""
    maybe: int
    """Sentences that hedge."""
    tips: int
    """Sentences that suggest to do something."""
    sounds_like: bool
    """Whether the reply opens with a formula of understanding, such as "it sounds like" or "I hear you"."""
    emojis: int


def _impersonal(
    replies: list[str], mentioned: list[set[int]], utterances: list[str], has_facts: bool, language: Language
) -> int:
    """See `Cues.impersonal`.

    Args:
        mentioned: the facts that each reply mentions.
        has_facts: whether the user has told any fact.
    """
    for count, (reply, facts) in enumerate(zip(reversed(replies), reversed(mentioned), strict=True)):
        if has_facts and facts:
            return count
        if not has_facts and any(
            not topic_words(reply, language).isdisjoint(topic_words(utterance, language)) for utterance in utterances
        ):
            return count
    return len(replies)


def _is_list(reply: str) -> bool:
    """Whether the reply has two list marks or more."""
    return _LIST_HINT.search(reply) is not None and len(_LIST_MARK.findall(reply)) >= 2


def read_cues(dialogue: Dialogue) -> Cues:
    """The cues of the last reply of a dialogue, from the viewpoint of its user."""
    profile, language = dialogue.profile, dialogue.profile.language
    reply = dialogue.turns[-1].reply
    earlier = [turn.reply for turn in dialogue.turns[:-1]]
    utterances = [dialogue.opening] + [turn.reaction.utterance for turn in dialogue.turns if turn.reaction]
    parts = sentences(reply)
    tags = tag_sentences(parts, language)
    tokens = words(reply, language)
    plain = plain_words(reply, language)
    length = len(plain) - plain.count("'")

    told = dialogue.told_facts
    mentioned = [told & facts for facts in mentioned_facts([*earlier, reply], profile.story.facts, language)]
    old = len(mentioned[-1].intersection(set().union(*mentioned[:-1])))

    topic = topic_words(reply, language)
    # Scoring is slow, so only the beginning of an enormous reply is scored.
    scored = parts if len(reply) <= 20_000 else sentences(reply[:20_000])
    garbled = sorted([garbled_bits(sentence, language) for sentence in scored]) or [0.0]
    repeated, again = repeated_share(reply, earlier, language)
    start = first_three(reply, language)
    styles = tags.styles
    return Cues(
        acts=tuple(sorted(tags.acts, key=lambda act: (-tags.acts[act], act))),
        length=length,
        relative_length=length / max(_SHORT_UTTERANCE[language], len(plain_words(utterances[-1], language))),
        shares={act: count / tags.sentences for act, count in tags.acts.items()},
        short=length < _SHORT[language],
        long=max(0.0, length / _LONG[language] - 1),
        new_facts=len(mentioned[-1]) - old,
        old_facts=old,
        repeated=repeated,
        alike=shared_pairs(reply, earlier[-1], language) if earlier else 0.0,
        again=again,
        parroted=copied_share(reply, utterances[-2:], language),
        generic=styles.get("generic", 0),
        cold=styles.get("cold", 0),
        warm=styles.get("warm", 0),
        unsafe=styles.get("unsafe", 0),
        lecture="lecture" in styles or _is_list(reply),
        questions=reply.count("?") + reply.count("？"),
        foreign=foreign_marks(reply, profile, utterances),
        sentences=tags.sentences,
        garbled=garbled[-1],
        half_garbled=garbled[len(garbled) // 2],
        # Chinese often doubles characters, so only English is checked.
        doubled=sum([a.isalpha() for a, b in pairwise(tokens) if a == b]) if language == "en" else 0,
        unfinished=bool(reply) and not _ENDING.match(reply.rstrip()[-1:]),
        wrong_language=script_share(reply, language) < 0.5,
        echo=len(topic & topic_words(utterances[-1], language)),
        impersonal=_impersonal([*earlier, reply], mentioned, utterances, bool(told), language),
        same_start=sum([start == first_three(earlier_reply, language) for earlier_reply in earlier]),
        maybe=styles.get("maybe", 0),
        tips=styles.get("tip", 0),
        sounds_like="sounds_like" in tags.first,
        emojis=0 if reply.isascii() else len(_EMOJI.findall(reply)),
    )


def need_acts(cues: Cues) -> tuple[str, ...]:
    """The acts among the cues that answer a hidden intention."""
    return tuple(act for act in cues.acts if act in NEED_ACTS)
