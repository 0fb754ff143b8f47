"""A language model as the simulated user: it first judges the reply (step one), then speaks (step two).

SAGE (arXiv 2505.02847, section 2), with prompts of our own. What the policy said is a quotation for the model, in a
fence that it cannot forge, and the verdict is read from the model's own object alone: nothing in a reply is a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rlver.core.data import digest
from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import Band, band
from rlver.core.errors import CallFailed, RlverError, Unreadable
from rlver.core.interfaces import UserType
from rlver.core.profile import ChatIntention, Frozen, Language, Profile
from rlver.core.seeds import derive
from rlver.llm import LLM, ask
from rlver.llm.parse import points
from rlver.text.words import script_share
from rlver.users.prompts import fill, pieces, prompts_hash, quote, quote_talk

LONGEST_UTTERANCE = 1200
"""Characters. A user speaks briefly."""
_SCRIPT = 0.5
"""Least share of an utterance in the script of the user's language."""
MOST_CHANGE = 10.0
"""Largest change that the prompt allows (SAGE); a larger one is clamped, as presets without a clamp would not."""

Text = Annotated[str, Field(min_length=1, max_length=8000)]


class Verdict(BaseModel):
    """Step one: how the last reply lands."""

    model_config = ConfigDict(extra="ignore")

    content: Text
    fit: Text
    activity: Text
    feeling: Text
    change: Annotated[float, BeforeValidator(points), Field(ge=-100, le=100)]


class Speech(BaseModel):
    """Step two: what the user says."""

    model_config = ConfigDict(extra="ignore")

    attitude: str = ""
    aim: str = ""
    tone: str = ""
    utterance: Text


class JudgeOptions(Frozen):
    """How the models behind a user are asked."""

    judge_temperature: float = Field(default=0.0, ge=0)
    speak_temperature: float = Field(default=0.7, ge=0)
    votes: int = Field(default=1, ge=1)
    """Verdicts of each judge; the median counts. With a temperature of 0 more than one tells little."""
    max_tokens: int | None = Field(default=4096, ge=64)
    """Most tokens of one answer, a reasoning model's thinking included; None leaves it to the endpoint."""
    asks: int = Field(default=4, ge=1)
    """How often a step is asked before an unreadable answer ends the dialogue."""


class LlmUser:
    """A simulated user that a language model plays. See `User` for its methods.

    Args:
        speaker: the model that speaks, and judges unless judges are given.
        judges: an ensemble; the change is the median of all their votes.
    """

    def __init__(
        self,
        speaker: LLM,
        language: Language,
        user_type: UserType = "vanilla",
        *,
        judges: Sequence[LLM] = (),
        options: JudgeOptions | None = None,
    ) -> None:
        self.speaker = speaker
        self.judges = tuple(judges) or (speaker,)
        self.language = language
        self.user_type = user_type
        self.options = options or JudgeOptions()

    @property
    def identity(self) -> str:
        """For example `openai:qwen3@http://localhost:8000/v1/vanilla/en@3f2a90bc`: a hash of prompts and options."""
        specs = "+".join(llm.endpoint.spec for llm in self.judges)
        mark = digest(prompts_hash(self.language), self.options.model_dump_json(), specs)
        judged = "" if self.judges == (self.speaker,) else f"/judged by {specs}"
        return f"{self.speaker.endpoint.spec}{judged}/{self.user_type}/{self.language}@{mark}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the identity's hash stands for, in words."""
        return self.options.model_dump() | {
            "judges": [llm.endpoint.spec for llm in self.judges],
            "prompts": prompts_hash(self.language),
        }

    @property
    def models(self) -> tuple[LLM, ...]:
        """The clients behind this user."""
        return tuple(dict.fromkeys((self.speaker, *self.judges)))

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first utterance: the profile's own if it has one, else the model writes one."""
        profile = dialogue.profile
        if profile.language != self.language:
            raise RlverError(f"{profile.id}: speaks {profile.language!r}, and this user {self.language!r}.")
        if profile.opening:
            return Opening(profile.opening)
        speech = await self._speak(fill("open", self.language, self._person(profile)), derive(seed, "open"), [])
        return Opening(speech.utterance)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Feel, then speak. Raises Unreadable if the model gives no usable answer, CallFailed if it gives none."""
        turn = len(dialogue.turns)
        verdict, votes = await self.judge(dialogue, derive(seed, turn, "judge"))
        after = dialogue.preset.apply(dialogue.emotion, verdict.change)
        thought = "\n".join((verdict.content, verdict.fit, verdict.activity, verdict.feeling))
        said = [message.content for message in dialogue.messages() if message.role == "user"]
        slots = self._person(dialogue.profile) | self._talk(dialogue, derive(seed, turn, "mark"), all_of_it=True)
        words = pieces(self.language)
        ends = {Band.S: dialogue.preset.ends_at_success, Band.F: after < dialogue.preset.fails_below}
        leaving = words["leaving"][band(after) if ends.get(band(after)) else "stay"]
        slots |= {
            "score": f"{after:.0f}",
            "before": f"{dialogue.emotion:.0f}",
            "band": words["band"][band(after)],
            "thought": quote(f"{verdict.activity} {verdict.feeling}"),
            "leaving": leaving,
        }
        speech = await self._speak(fill("speak", self.language, slots), derive(seed, turn, "speak"), said)
        return Reaction(change=verdict.change, thought=thought, utterance=speech.utterance, votes=votes)

    async def close(self) -> None:
        """Close connections; the user can be used again."""
        for llm in self.models:
            await llm.close()

    async def judge(self, dialogue: Dialogue, seed: int) -> tuple[Verdict, tuple[float, ...]]:
        """Step one alone: the verdict on the last reply, with the median change, and all votes if there are several.

        Raises:
            Unreadable, CallFailed: half of the votes or more are missing.
        """
        reply = dialogue.turns[-1].reply
        slots = self._person(dialogue.profile) | self._talk(dialogue, derive(seed, "mark"))
        slots |= {
            "score": f"{dialogue.emotion:.0f}",
            "band": pieces(self.language)["band"][band(dialogue.emotion)],
            "reply": quote(reply),
        }
        prompt = fill("judge", self.language, slots)
        foreign = [turn.reply for turn in dialogue.turns]
        panel = [(llm, vote) for llm in self.judges for vote in range(self.options.votes)]
        asked = [self._verdict(llm, prompt, foreign, derive(seed, vote)) for llm, vote in panel]
        if len(asked) == 1:
            return await asked[0], ()
        found = await asyncio.gather(*asked, return_exceptions=True)
        for failure in found:
            if isinstance(failure, BaseException) and not isinstance(failure, CallFailed):
                raise failure
        verdicts = [verdict for verdict in found if isinstance(verdict, Verdict)]
        if 2 * len(verdicts) <= len(found):
            failures = [failure for failure in found if isinstance(failure, CallFailed)]
            kind = Unreadable if all(isinstance(failure, Unreadable) for failure in failures) else CallFailed
            raise kind(f"{len(failures)} of {len(found)} votes failed ({failures[0]})")
        votes = tuple(verdict.change for verdict in verdicts)
        middle = median(votes)
        nearest = min(verdicts, key=lambda verdict: abs(verdict.change - middle))
        return nearest.model_copy(update={"change": middle}), votes

    async def _verdict(self, llm: LLM, prompt: str, foreign: Sequence[str], seed: int) -> Verdict:
        verdict = await ask(
            llm,
            [{"role": "user", "content": prompt}],
            Verdict,
            language=self.language,
            temperature=self.options.judge_temperature,
            max_tokens=self.options.max_tokens,
            seed=seed,
            foreign=foreign,
            attempts=self.options.asks,
        )
        return verdict.model_copy(update={"change": max(-MOST_CHANGE, min(MOST_CHANGE, verdict.change))})

    async def _speak(self, prompt: str, seed: int, said: Sequence[str]) -> Speech:
        def check(speech: Speech) -> str:
            utterance = speech.utterance.strip()
            if not utterance:
                return "utterance: empty"
            if len(utterance) > LONGEST_UTTERANCE:
                return "utterance: too long"
            if script_share(utterance, self.language) < _SCRIPT:
                return "utterance: wrong language"
            return "utterance: said before, word for word" if utterance in said else ""

        speech = await ask(
            self.speaker,
            [{"role": "user", "content": prompt}],
            Speech,
            language=self.language,
            temperature=self.options.speak_temperature,
            max_tokens=self.options.max_tokens,
            seed=seed,
            check=check,
            attempts=self.options.asks,
        )
        return speech.model_copy(update={"utterance": speech.utterance.strip()})

    def _person(self, profile: Profile) -> dict[str, str]:
        words = pieces(self.language)
        persona = profile.persona
        facts = "\n".join(f"- {fact.say}" for fact in profile.story.facts)
        return {
            "persona": persona.text or f"{persona.name}, {persona.occupation}",
            "story": profile.story.text or facts,
            "scenario": words["scenario"]["chat" if isinstance(profile.intention, ChatIntention) else "support"],
            "want": words["want"][profile.intention],
            "manner": words["manner"][self.user_type],
        }

    def _talk(self, dialogue: Dialogue, seed: int, all_of_it: bool = False) -> dict[str, str]:
        """The talk in its fence, without the reply to be judged unless all of it is asked for."""
        messages = dialogue.messages()
        speakers = {"user": "user", "assistant": "other"}
        talk = [(speakers[m.role], m.content) for m in (messages if all_of_it else messages[:-1])]
        return {"talk": quote_talk(talk), "mark": f"{seed % 16**8:08x}"}
