"""The embedded user, which runs offline on any machine and explains every point that it gives."""

from __future__ import annotations

import json
import random

from rlver.core.data import digest, read_text
from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import SUCCESS_AT, band
from rlver.core.interfaces import UserType
from rlver.core.profile import Language, Profile
from rlver.users.embedded.acts import NEED_ACTS
from rlver.users.embedded.cues import read_cues
from rlver.users.embedded.facts import mentioned_facts
from rlver.users.embedded.judge import FIT, STATE, VERSION, judge, meets
from rlver.users.embedded.speech import Phrasing, Speech, line_key
from rlver.users.embedded.weights import Weights, default_weights

# How often a vanilla user hints at the need: most of the time while it is not met, less often once it is.
_HINT_UNMET, _HINT_MET = 0.8, 0.5


class EmbeddedUser:
    """A deterministic simulated user in English or Chinese. See `User` for its methods.

    Args:
        phrasing: set of sentences that the user speaks with.
        weights: calibrated points of the judge; by default those that ship with the package.
    """

    def __init__(
        self,
        language: Language,
        user_type: UserType = "vanilla",
        phrasing: Phrasing = "train",
        weights: Weights | None = None,
    ) -> None:
        self.language = language
        self.user_type = user_type
        self.phrasing = phrasing
        self.weights = weights or default_weights()

    @property
    def identity(self) -> str:
        """For example `embedded/vanilla/en/heldout@4-3f2a90bc`: version and a hash of lines, lexicon and weights."""
        package = "rlver.users.embedded"
        texts = [read_text(package, f"data/{name}.{self.language}.yaml") for name in ("speech", "lexicon")]
        reference = read_text(package, f"data/reference.{self.language}.txt")
        mark = digest(*texts, reference, json.dumps(FIT, sort_keys=True), self.weights.mark)
        return f"embedded/{self.user_type}/{self.language}/{self.phrasing}@{VERSION}-{mark}"

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first utterance: the profile's own, or else a first line, the first fact and perhaps a hint."""
        profile = dialogue.profile
        if profile.opening:
            return Opening(profile.opening)
        speech = self._speech(profile, seed, 0, [])
        hint = self.user_type == "vanilla" and speech.chance(_HINT_UNMET)
        utterance = speech.join(
            speech.line("openings"),
            profile.story.facts[0].say,
            speech.line("hints", profile.need) if hint else "",
        )
        return Opening(utterance, 0, hint)

    def hint(self, profile: Profile, seed: int) -> str:
        """A line that hints at the need of a profile."""
        return self._speech(profile, seed, 0, []).line("hints", profile.need)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Judge the last reply, and answer."""
        profile = dialogue.profile
        cues = read_cues(dialogue)
        change, reasons = judge(cues, dialogue, self.user_type, self.weights)
        acts = tuple(act for act in cues.acts if act in NEED_ACTS)
        met = any(meets(act, profile.need) for act in acts)
        not_about_reply = ("rounding", "guarded", *STATE)
        main = next((r.cue for r in reasons if r.points * change > 0 and r.cue not in not_about_reply), "partial")
        key = line_key("fit" if main in acts and met and change > 0 else main, change)
        utterances = [dialogue.opening] + [turn.reaction.utterance for turn in dialogue.turns if turn.reaction]
        speech = self._speech(profile, seed, len(dialogue.turns), utterances)
        thought = speech.thought(key)
        told = dialogue.told_facts
        handle = self._handle(dialogue, told)
        after = dialogue.preset.apply(dialogue.emotion, change)

        leaving = None
        if after >= SUCCESS_AT and dialogue.preset.ends_at_success:
            leaving = "delighted"
        elif after < dialogue.preset.fails_below:
            leaving = "fed_up"
        if leaving:
            utterance = speech.join(speech.line("answers", key, h=handle), speech.line("farewells", leaving))
            return Reaction(change=change, reasons=tuple(reasons), thought=thought, utterance=utterance, acts=acts)

        fact = next((i for i in range(len(profile.story.facts)) if i not in told), None)
        hint = self.user_type == "vanilla" and speech.chance(_HINT_MET if met and change > 0 else _HINT_UNMET)
        if hint:
            closing = speech.line("hints", profile.need)
        elif self.user_type == "challenging" and speech.chance(0.5):
            persona = profile.persona
            closing = speech.line(
                "details",
                occupation=persona.occupation,
                hobby=speech.pick(persona.hobbies),
                trait=speech.pick(persona.traits),
            )
        else:
            closing = speech.mood(band(after))
        utterance = speech.join(
            speech.marked(speech.line("answers", key, h=handle), profile.persona.style),
            profile.story.facts[fact].say if fact is not None else "",
            closing,
        )
        return Reaction(
            change=change, reasons=tuple(reasons), thought=thought, utterance=utterance, fact=fact, hint=hint, acts=acts
        )

    def _handle(self, dialogue: Dialogue, told: set[int]) -> str:
        """The handle of the latest told fact that the last reply mentions, so that the answer can refer to it."""
        reply = dialogue.turns[-1].reply
        facts = dialogue.profile.story.facts
        mentioned = mentioned_facts([reply], facts, self.language)[0] & told
        return facts[max(mentioned)].handle if mentioned else ""

    def _speech(self, profile: Profile, seed: int, turn: int, utterances: list[str]) -> Speech:
        return Speech(self.language, self.phrasing, random.Random(f"{seed}:{profile.id}:{turn}"), utterances)
