"""What there is to see in a reply: named cues, each a number that a reader can check by hand.

The agent reads the text of the reply, its own story and the talk so far; nothing of the policy but its words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import ahocorasick

from rlver.agents.acts import NEED_ACTS, tag_sentences
from rlver.core.data import read_text, read_yaml
from rlver.core.dialogue import Dialogue
from rlver.core.profile import Fact, Language, Profile
from rlver.stories.library import is_known, load_stories
from rlver.text.ngram import NgramModel, quantile
from rlver.text.words import first_words, script_share, sentences, words

# Chinese has no spaces, so its spans are counted in characters: about twice as many for the same content.
# A run of the reply that is the user's own is at least twice as long as the n-grams, less one.
_RUN = {"en": 7, "zh": 12}
_GRAM = {"en": 4, "zh": 6}
_SHORT = {"en": 5, "zh": 8}
_LONG = {"en": 150, "zh": 300}
# A line shorter than this asks for no shorter answer.
_LINE = {"en": 12, "zh": 20}
_ENDING = re.compile(r"[.!?。！？…~～)\]」”\"'*\U0001F300-\U0001FAFF]")
_HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")
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


@cache
def stopwords(language: Language) -> frozenset[str]:
    """Words that tell nothing about a story."""
    return frozenset(read_yaml("rlver.agents", f"data/lexicon.{language}.yaml")["stopwords"])


@cache
def fluency(language: Language) -> tuple[NgramModel, float]:
    """The agent's sense of what a sentence is, and the score that 97 % of sentences it has not seen reach."""
    lines = [line for line in read_text("rlver.agents", f"data/reference.{language}.txt").splitlines() if line]
    examples = read_yaml("rlver.agents", "data/act_examples.yaml")[language]
    lines += [sentence for group in examples.values() for sentence in group]
    lines += [fact.say.format(a="Kim", b="Lee") for story in load_stories(language, "train") for fact in story.facts]
    unseen = []
    for seen_half, unseen_half in ((lines[::2], lines[1::2]), (lines[1::2], lines[::2])):
        model = NgramModel(seen_half, language, min_count=2)
        unseen += [model.worst_window(line) for line in unseen_half]
    # A model of all lines scores unseen ones a little higher than the half models do: the threshold is mild.
    return NgramModel(lines, language), quantile(unseen, 0.03)


@cache
def _everyday(language: Language) -> frozenset[str]:
    """Words that anybody uses: that a reply has them says nothing about whose story it is."""
    return frozenset(words(read_text("rlver.agents", f"data/reference.{language}.txt"), language))


@cache
def _belongings(language: Language) -> frozenset[str]:
    """Things that mark a story (heads of handles) and given names: foreign wherever they are not at home."""
    marks = set()
    for story in load_stories(language):
        for fact in story.facts:
            if language == "zh":
                marks.add(fact.handle)
            else:
                marks.add(words(fact.handle, language)[-1])
    names = read_yaml("rlver.stories", f"data/personas.{language}.yaml")["names"]
    people = {name for pools in names.values() for pool in pools.values() for name in pool}
    if language == "zh":
        return frozenset(marks | people)
    return frozenset((marks | {name.lower() for name in people}) - _everyday(language))


@cache
def _belongings_finder() -> ahocorasick.Automaton:
    """Finds all Chinese belongings of a text at once."""
    finder = ahocorasick.Automaton()
    for mark in _belongings("zh") - {""}:
        finder.add_word(mark, mark)
    finder.make_automaton()
    return finder


@lru_cache(maxsize=50_000)
def _word_set(text: str, language: Language) -> frozenset[str]:
    return frozenset(words(text, language))


@lru_cache(maxsize=50_000)
def content_words(text: str, language: Language) -> frozenset[str]:
    """Words that carry content (English only)."""
    return frozenset([w for w in _word_set(text, language) - stopwords(language) if len(w) > 2 and w.isalpha()])


def short_name(handle: str, language: Language) -> str:
    """The shortest way to refer to a fact's thing: "the ovens" for "the bread ovens", if no other ovens could be
    meant; the whole handle otherwise."""
    qualified = handle.split()
    if language == "zh" or len(qualified) < 3 or qualified[-1].lower() in _everyday(language):
        return handle
    return f"{qualified[0]} {qualified[-1]}"


class _Signs(NamedTuple):
    """By what a reply shows that it takes up a fact."""

    name: frozenset[str]
    """All of these words (Chinese: the one string) name the fact's thing."""
    content: frozenset[str]
    """Three of these words (Chinese: one of these runs of four characters) are the fact's own."""


@dataclass(frozen=True, slots=True, eq=False)
class _AllSigns:
    """Those of all facts of a story; one object a story, so that a cache need not compare what it holds."""

    facts: tuple[_Signs, ...]


def takes_up(reply: str, fact: Fact, language: Language) -> bool:
    """Whether the reply takes up the fact: the short name of its thing, or enough of its own words."""
    return bool(taken_up([reply], (fact,), language)[0])


def taken_up(replies: Sequence[str], facts: tuple[Fact, ...], language: Language) -> list[frozenset[int]]:
    """Which of the facts, by index, each reply takes up."""
    signs = _signs(tuple([fact.say for fact in facts]), tuple([fact.handle for fact in facts]), language)
    return [_taken_up(reply, signs, language) for reply in replies]


@lru_cache(maxsize=50_000)
def _taken_up(reply: str, signs: _AllSigns, language: Language) -> frozenset[int]:
    if language == "zh":
        runs = {reply[i : i + 4] for i in range(len(reply) - 3)}
        return frozenset(
            [
                i
                for i, (name, content) in enumerate(signs.facts)
                if any([handle in reply for handle in name]) or not content.isdisjoint(runs)
            ]
        )
    said = _word_set(reply, language)
    return frozenset(
        [i for i, (name, content) in enumerate(signs.facts) if (name and name <= said) or len(content & said) >= 3]
    )


@lru_cache(maxsize=5_000)
def _signs(says: tuple[str, ...], handles: tuple[str, ...], language: Language) -> _AllSigns:
    if language == "en":
        names = [content_words(short_name(handle, language), language) for handle in handles]
        contents = [content_words(say, language) for say in says]
    else:
        names = [frozenset({handle} - {""}) for handle in handles]
        contents = [_han_runs(say, 4) - stopwords(language) for say in says]
    return _AllSigns(tuple(map(_Signs, names, contents)))


def _han_runs(text: str, size: int) -> frozenset[str]:
    """All runs of so many Chinese characters."""
    return frozenset([run[i : i + size] for run in _HAN_RUN.findall(text) for i in range(len(run) - size + 1)])


@lru_cache(maxsize=20_000)
def _plain_words(text: str, language: Language) -> tuple[str, ...]:
    """Its words without the marks between them."""
    return tuple([word for word in words(text, language) if word.isalnum() or "'" in word])


@lru_cache(maxsize=20_000)
def _grams(text: str, language: Language, n: int) -> frozenset[int]:
    """Hashes of its sequences of `n` words: 64 bits, so that two sequences never share one in practice."""
    tokens = _plain_words(text, language)
    return frozenset(map(hash, zip(*[tokens[i:] for i in range(n)], strict=False)))


@lru_cache(maxsize=20_000)
def _own_words(text: str, language: Language) -> frozenset[str]:
    """What marks a text as being about its matter: content words (Chinese: pairs of characters) nobody else uses."""
    if language == "en":
        rare = _word_set(text, language) - _said_by_anyone(language)
        return frozenset([w for w in rare if len(w) > 2 and w.isalpha()])
    return _han_runs(text, 2) - _everyday_pairs()


@cache
def _said_by_anyone(language: Language) -> frozenset[str]:
    return _everyday(language) | stopwords(language)


@cache
def _everyday_pairs() -> frozenset[str]:
    return _han_runs(read_text("rlver.agents", "data/reference.zh.txt"), 2)


def _impersonal(replies: list[str], taken: list[set[int]], heard: list[str], facts: bool, language: Language) -> int:
    """How many of the last replies in a row take up no fact that was told or, where there are no facts, no word."""
    for count, (reply, known) in enumerate(zip(reversed(replies), reversed(taken), strict=True)):
        if facts and known:
            return count
        if not facts and any(not _own_words(reply, language).isdisjoint(_own_words(said, language)) for said in heard):
            return count
    return len(replies)


@lru_cache(maxsize=20_000)
def _start(text: str, language: Language) -> tuple[str, ...]:
    return first_words(text[:60], 3, language)


def _repeated(reply: str, earlier: list[str], language: Language) -> tuple[float, int]:
    """Share of the reply's n-grams that stand in earlier replies, and how many of these hold nearly all of them;
    a short reply is compared as a whole."""
    n = _GRAM[language]
    own = new = _grams(reply, language, n)
    if not own:
        again = sum(words(reply, language) == words(other, language) for other in earlier)
        return float(again > 0), again
    again = 0
    for other in earlier:
        grams = _grams(other, language, n)
        if not own.isdisjoint(grams):
            new = new - grams
            again += len(own & grams) / len(own) > 0.8
    return (len(own) - len(new)) / len(own), again


def _shared(own: frozenset[int], other: frozenset[int]) -> float:
    return len(own & other) / len(own) if own else 0.0


def _parroted(reply: str, told: list[str], language: Language) -> float:
    n = _RUN[language]
    # A run that two texts share covers a whole block of the one, if that is cut into blocks of half the length.
    if all(map(_grams(reply, language, _GRAM[language]).isdisjoint, [_blocks(text, language) for text in told])):
        return 0.0
    own = _grams(reply, language, n)
    copied = own & frozenset().union(*(_grams(text, language, n) for text in told))
    length = len(own) + n - 1
    return min(1.0, (len(copied) + n - 1) / length) if copied else 0.0


@lru_cache(maxsize=20_000)
def _blocks(text: str, language: Language) -> frozenset[int]:
    """The n-grams of a text that do not overlap, as `_grams` has them."""
    tokens, n = _plain_words(text, language), _GRAM[language]
    return frozenset(map(hash, zip(*[tokens[i::n] for i in range(n)], strict=False)))


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
    plain = _plain_words(reply, language)
    length = len(plain) - plain.count("'")

    told = dialogue.told
    taken = [told & known for known in taken_up([*earlier, reply], profile.story.facts, language)]
    old = len(taken[-1].intersection(set().union(*taken[:-1])))

    own = _own_words(reply, language)
    readable = said if len(reply) <= 20_000 else sentences(reply[:20_000])
    garbled = sorted([_garbled(sentence, language) for sentence in readable]) or [0.0]
    repeated, again = _repeated(reply, earlier, language)
    start = _start(reply, language)
    styles = tags.styles
    return Cues(
        acts=tuple(sorted(tags.acts, key=lambda act: (-tags.acts[act], act))),
        length=length,
        relative_length=length / max(_LINE[language], len(_plain_words(heard[-1], language))),
        shares={act: count / tags.sentences for act, count in tags.acts.items()},
        short=length < _SHORT[language],
        long=max(0.0, length / _LONG[language] - 1),
        new_facts=len(taken[-1]) - old,
        old_facts=old,
        repeated=repeated,
        alike=_shared(_grams(reply, language, 2), _grams(earlier[-1], language, 2)) if earlier else 0.0,
        again=again,
        parroted=_parroted(reply, heard[-2:], language),
        generic=styles.get("generic", 0),
        cold=styles.get("cold", 0),
        warm=styles.get("warm", 0),
        unsafe=styles.get("unsafe", 0),
        lecture="lecture" in styles or _lectures(reply),
        questions=reply.count("?") + reply.count("？"),
        foreign=_foreign(reply, profile, heard),
        sentences=tags.sentences,
        garbled=garbled[-1],
        half_garbled=garbled[len(garbled) // 2],
        # Chinese doubles characters all the time, so only English is checked.
        doubled=sum([a.isalpha() for a, b in pairwise(tokens) if a == b]) if language == "en" else 0,
        unfinished=bool(reply) and not _ENDING.match(reply.rstrip()[-1:]),
        wrong_language=script_share(reply, language) < 0.5,
        echo=len(own & _own_words(heard[-1], language)),
        impersonal=_impersonal([*earlier, reply], taken, heard, bool(told), language),
        same_start=sum([start == _start(other, language) for other in earlier]),
        maybe=styles.get("maybe", 0),
        tips=styles.get("tip", 0),
        sounds_like="sounds_like" in tags.first,
        emojis=0 if reply.isascii() else len(_EMOJI.findall(reply)),
    )


@lru_cache(maxsize=20_000)
def _garbled(sentence: str, language: Language) -> float:
    """Bits by which a sentence falls under the threshold of fluency; headings and list marks are let pass."""
    model, threshold = fluency(language)
    if sum([word[0].isalpha() for word in words(sentence, language)]) < 3:
        return 0.0
    return max(0.0, threshold - model.worst_window(sentence))


@lru_cache(maxsize=20_000)
def _marks(text: str, language: Language) -> frozenset[str]:
    """Marks of stories that a text holds."""
    if language == "zh":
        return frozenset([mark for _, mark in _belongings_finder().iter(text)])
    return _belongings(language) & _word_set(text, language)


@lru_cache(maxsize=5_000)
def _at_home(story: str, persona: str, says: tuple[str, ...], language: Language) -> frozenset[str]:
    return _marks("\n".join([story, persona, *says]), language)


def _foreign(reply: str, profile: Profile, heard: list[str]) -> int:
    """Marks of other stories. Of a story from elsewhere nobody can tell what is foreign to it."""
    language, story = profile.language, profile.story
    if not is_known(story.id, language):
        return 0
    found = _marks(reply, language)
    for text in reversed(heard):
        if not found:
            return 0
        found = found - _marks(text, language)
    if not found:
        return 0
    return len(found - _at_home(story.text, profile.persona.text, tuple(fact.say for fact in story.facts), language))


def need_acts(cues: Cues) -> tuple[str, ...]:
    """The acts among the cues that answer some hidden intention."""
    return tuple(act for act in cues.acts if act in NEED_ACTS)
