"""The author of the tiny policy's corpus: it writes replies that are partly good and partly generic."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from rlver.core.data import read_yaml
from rlver.core.dialogue import Dialogue, Reply
from rlver.core.profile import Intention, Language
from rlver.core.think import CLOSE, OPEN

GOOD_SHARE = 0.5
"""Share of good replies. With it, the untrained policy scores about as much as Qwen2.5-7B-Instruct before training."""
APT_SHARE = 0.8
"""Share of good replies with an apt act: the one that the user hinted at or, without a hint, the one that has just
pleased the user. The acts of the other good replies are drawn at random."""
INSIGHT_SHARE = 0.75
"""Share of thoughts that name the hidden intention after the user hinted at it. Replies do not depend on thoughts."""


@dataclass(frozen=True)
class Line:
    """One reply of the corpus."""

    raw: str
    """The text, with the thought if the policy thinks."""
    handle: str
    """The handle in the user's story that the reply mentions; empty if it mentions none."""
    first_sentence: str = ""
    """The first sentence of the reply, which performs its act."""


class CorpusAuthor:
    """Writes the replies of the corpus. It implements `Policy`, so that the driver can play dialogues with it.

    Args:
        think: write a thought before each reply.
        good_share: share of good replies, 0-1.
    """

    spec = "corpus"
    prompt_hash = ""

    def __init__(self, language: Language, think: bool, good_share: float = GOOD_SHARE) -> None:
        self.think = think
        self._good_share = good_share
        self._sentences = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")
        self._separator = "" if language == "zh" else " "
        self._rngs: WeakKeyDictionary[Dialogue, random.Random] = WeakKeyDictionary()
        self.lines: WeakKeyDictionary[Dialogue, list[Line]] = WeakKeyDictionary()
        """The replies that were written in each dialogue."""

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`."""
        rng = self._rngs.setdefault(dialogue, random.Random(seed))
        line = self._good_line(dialogue, rng) if rng.random() < self._good_share else self._generic_line(rng)
        if self.think:
            line = replace(line, raw=f"{OPEN}{self._thought(dialogue, rng)}{CLOSE}{line.raw}")
        self.lines.setdefault(dialogue, []).append(line)
        return Reply.parse(line.raw, self.think)

    def _generic_line(self, rng: random.Random) -> Line:
        sentences, draw = self._sentences["generic"], rng.random()
        if draw < 0.25:
            parts = [rng.choice(sentences["list"])]
        elif draw < 0.33:
            parts = [rng.choice(sentences["first"]), rng.choice(sentences["refer"])]
        else:
            parts = [rng.choice(sentences["first"]), rng.choice(sentences["second"])]
        return Line(self._separator.join(parts), "", parts[0])

    def _good_line(self, dialogue: Dialogue, rng: random.Random) -> Line:
        handle = _last_handle(dialogue)
        act = _apt_act(dialogue)
        if act is None or rng.random() >= APT_SHARE:
            act = rng.choice(list(Intention))
        act_sentence = rng.choice(self._sentences["acts"][act])
        if not handle:
            return Line(act_sentence, "", act_sentence)
        specific_sentence = rng.choice(self._sentences["specific"]).replace("{h}", handle)
        return Line(self._separator.join([act_sentence, specific_sentence]), handle, act_sentence)

    def _thought(self, dialogue: Dialogue, rng: random.Random) -> str:
        thoughts = self._sentences["thoughts"]
        if _has_hinted(dialogue) and rng.random() < INSIGHT_SHARE:
            return str(rng.choice(thoughts["need"][dialogue.profile.intention]))
        return str(rng.choice(thoughts["empty"]))


def act_sentences(language: Language) -> dict[str, list[str]]:
    """The sentences with which the author performs each act."""
    sentences: dict[str, list[str]] = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")["acts"]
    return sentences


def _apt_act(dialogue: Dialogue) -> str | None:
    """The act that the user hinted at, else the act that has just pleased the user, else None."""
    if _has_hinted(dialogue):
        return dialogue.profile.intention
    last = dialogue.turns[-1].reaction if dialogue.turns else None
    return last.acts[0] if last is not None and last.acts and last.change > 0 else None


def _has_hinted(dialogue: Dialogue) -> bool:
    """Whether the user has hinted at the hidden intention so far."""
    return dialogue.opening_hint or any(turn.reaction and turn.reaction.hint for turn in dialogue.turns)


def _last_handle(dialogue: Dialogue) -> str:
    """The handle of the fact that the user's last utterance tells; empty if it tells none."""
    reaction = dialogue.turns[-1].reaction if dialogue.turns else None
    fact = reaction.fact if reaction else dialogue.opening_fact
    return dialogue.profile.story.facts[fact].handle if fact is not None else ""
