"""A language model as the simulated user: it first judges the reply (step one), then answers (step two).

This is the method of SAGE (arXiv 2505.02847, section 2) with other prompts. The policy's words are quoted to the model
inside a fence that they cannot forge. The verdict is read from the model's own JSON object, never from a reply.
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
from rlver.users.prompts import fill, phrases, prompts_hash, quote, quote_dialogue

LONGEST_UTTERANCE = 1200
"""Largest number of characters of an utterance, because users speak briefly."""
_SCRIPT = 0.5
"""Smallest share of an utterance that must be in the script of the user's language."""
MOST_CHANGE = 10.0
"""Largest change that the prompt allows (SAGE). Larger ones are clamped, because some presets have no clamp."""

Text = Annotated[str, Field(min_length=1, max_length=8000)]


class Verdict(BaseModel):
    """Step one: how the user takes the last reply."""

    model_config = ConfigDict(extra="ignore")

    content: Text
    fit: Text
    activity: Text
    feeling: Text
    change: Annotated[float, BeforeValidator(points), Field(ge=-100, le=100)]


class Speech(BaseModel):
    """Step two: the user's next utterance."""

    model_config = ConfigDict(extra="ignore")

    attitude: str = ""
    aim: str = ""
    tone: str = ""
    utterance: Text


class JudgeOptions(Frozen):
    """Settings for the calls of the models behind a user."""

    judge_temperature: float = Field(default=0.0, ge=0)
    speak_temperature: float = Field(default=0.7, ge=0)
    votes: int = Field(default=1, ge=1)
    """Verdicts of each judge. The change is their median. At temperature 0, several verdicts hardly differ."""
    max_tokens: int | None = Field(default=4096, ge=64)
    """Largest number of tokens of one answer, including thinking; None leaves it to the endpoint."""
    asks: int = Field(default=4, ge=1)
    """Attempts at a step before an unreadable answer ends the dialogue."""


class LlmUser:
    """A simulated user that a language model plays. See `User` for its methods.

    Args:
        speaker: the model that speaks. It also judges, unless there are judges.
        judges: an ensemble of models. The change is the median of all their votes.
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
        hash_ = digest(prompts_hash(self.language), self.options.model_dump_json(), specs)
        judged = "" if self.judges == (self.speaker,) else f"/judged by {specs}"
        return f"{self.speaker.endpoint.spec}{judged}/{self.user_type}/{self.language}@{hash_}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings behind the hash in `identity`."""
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
            raise RlverError(
                f"{profile.id}: this profile has the language {profile.language!r}, but the user speaks "
                f"{self.language!r}."
            )
        if profile.opening:
            return Opening(profile.opening)
        speech = await self._speak(fill("open", self.language, self._person(profile)), derive(seed, "open"), [])
        return Opening(speech.utterance)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Judge the last reply, then speak.

        Raises:
            Unreadable: the model gives no usable answer.
            CallFailed: the model gives no answer.
        """
        turn = len(dialogue.turns)
        verdict, votes = await self.judge(dialogue, derive(seed, turn, "judge"))
        after = dialogue.preset.apply(dialogue.emotion, verdict.change)
        thought = "\n".join((verdict.content, verdict.fit, verdict.activity, verdict.feeling))
        utterances = [message.content for message in dialogue.messages() if message.role == "user"]
        slots = self._person(dialogue.profile)
        slots |= self._quoted(dialogue, derive(seed, turn, "mark"), with_last_reply=True)
        words = phrases(self.language)
        ends = {Band.S: dialogue.preset.ends_at_success, Band.F: after < dialogue.preset.fails_below}
        leaving = words["leaving"][band(after) if ends.get(band(after)) else "stay"]
        slots |= {
            "score": f"{after:.0f}",
            "before": f"{dialogue.emotion:.0f}",
            "band": words["band"][band(after)],
            "thought": quote(f"{verdict.activity} {verdict.feeling}"),
            "leaving": leaving,
        }
        speech = await self._speak(fill("speak", self.language, slots), derive(seed, turn, "speak"), utterances)
        return Reaction(change=verdict.change, thought=thought, utterance=speech.utterance, votes=votes)

    async def close(self) -> None:
        """Close connections. The user can be used again."""
        for llm in self.models:
            await llm.close()

    async def judge(self, dialogue: Dialogue, seed: int) -> tuple[Verdict, tuple[float, ...]]:
        """Step one alone: judge the last reply.

        Returns:
            The verdict with the median change, and all votes if there are several.

        Raises:
            Unreadable, CallFailed: half of the votes or more failed.
        """
        reply = dialogue.turns[-1].reply
        slots = self._person(dialogue.profile) | self._quoted(dialogue, derive(seed, "mark"))
        slots |= {
            "score": f"{dialogue.emotion:.0f}",
            "band": phrases(self.language)["band"][band(dialogue.emotion)],
            "reply": quote(reply),
        }
        prompt = fill("judge", self.language, slots)
        replies = [turn.reply for turn in dialogue.turns]
        panel = [(llm, vote) for llm in self.judges for vote in range(self.options.votes)]
        calls = [self._verdict(llm, prompt, replies, derive(seed, vote)) for llm, vote in panel]
        if len(calls) == 1:
            return await calls[0], ()
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, CallFailed):
                raise result
        verdicts = [result for result in results if isinstance(result, Verdict)]
        if 2 * len(verdicts) <= len(results):
            failures = [result for result in results if isinstance(result, CallFailed)]
            kind = Unreadable if all(isinstance(failure, Unreadable) for failure in failures) else CallFailed
            raise kind(f"{len(failures)} of {len(results)} votes failed ({failures[0]})")
        votes = tuple(verdict.change for verdict in verdicts)
        middle = median(votes)
        nearest = min(verdicts, key=lambda verdict: abs(verdict.change - middle))
        return nearest.model_copy(update={"change": middle}), votes

    async def _verdict(self, llm: LLM, prompt: str, replies: Sequence[str], seed: int) -> Verdict:
        """One vote. An object that stands in one of the policy's replies is not taken for the verdict."""
        verdict = await ask(
            llm,
            [{"role": "user", "content": prompt}],
            Verdict,
            language=self.language,
            temperature=self.options.judge_temperature,
            max_tokens=self.options.max_tokens,
            seed=seed,
            foreign=replies,
            attempts=self.options.asks,
        )
        return verdict.model_copy(update={"change": max(-MOST_CHANGE, min(MOST_CHANGE, verdict.change))})

    async def _speak(self, prompt: str, seed: int, utterances: Sequence[str]) -> Speech:
        """Step two. The utterance must differ from the earlier ones."""

        def check(speech: Speech) -> str:
            utterance = speech.utterance.strip()
            if not utterance:
                return "utterance: empty"
            if len(utterance) > LONGEST_UTTERANCE:
                return "utterance: too long"
            if script_share(utterance, self.language) < _SCRIPT:
                return "utterance: wrong language"
            return "utterance: said before, word for word" if utterance in utterances else ""

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
        """Slots that describe the user."""
        words = phrases(self.language)
        persona = profile.persona
        facts = "\n".join(f"- {fact.say}" for fact in profile.story.facts)
        return {
            "persona": persona.text or f"{persona.name}, {persona.occupation}",
            "story": profile.story.text or facts,
            "scenario": words["scenario"]["chat" if isinstance(profile.intention, ChatIntention) else "support"],
            "want": words["want"][profile.intention],
            "manner": words["manner"][self.user_type],
        }

    def _quoted(self, dialogue: Dialogue, seed: int, with_last_reply: bool = False) -> dict[str, str]:
        """Slots with the quoted dialogue and the random mark of its fence."""
        messages = dialogue.messages()
        speakers = {"user": "user", "assistant": "other"}
        quoted = [(speakers[m.role], m.content) for m in (messages if with_last_reply else messages[:-1])]
        return {"talk": quote_dialogue(quoted), "mark": f"{seed % 16**8:08x}"}
