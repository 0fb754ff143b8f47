"""The longest dialogue that a run can meet, in tokens, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlver.core.emotion import get_preset
from rlver.core.interfaces import User
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.inference.chat_format import ChatFormat
from rlver.policies.prompts import system_prompt
from rlver.policies.scripted import ScriptedPolicy
from rlver.rollout import play
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig

_PROFILES = 48
_SCRIPTS = ("oracle", "generic")
"""One keeps the user talking to the end, one makes them say how they are disappointed."""


@dataclass(frozen=True)
class Longest:
    """Lengths in tokens, marks of the chat template included."""

    opening: int
    """System prompt and the longest first utterance."""
    utterance: int
    """The longest later utterance."""
    replies: int
    """Most replies of a dialogue."""
    max_tokens: int
    """Most tokens of a reply, thinking included."""
    think: bool
    heard: int
    """Utterances that were looked at."""

    @property
    def context(self) -> int:
        """Most tokens that a row of the KV cache holds; a reply that was cut off is closed by one more token."""
        return self.opening + (self.replies - 1) * (self.max_tokens + 1 + self.utterance) + self.max_tokens

    @property
    def sample(self) -> int:
        """Most tokens of a dialogue in training: with thinking, each reply as it was sampled stands beside the talk."""
        return self.context + (self.replies - 1) * self.max_tokens * self.think

    @property
    def trained(self) -> int:
        """Most tokens of a dialogue that are trained."""
        return self.replies * self.max_tokens


def longest(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, agent: User, profiles: Sequence[Profile] | None
) -> Longest:
    """The longest dialogue: every reply takes all its tokens, every utterance is the longest that was heard.

    Utterances are heard where scripted policies talk with the run's user about 48 of its profiles.
    """
    if profiles is None:
        profiles = generate(config.language, "train", _PROFILES, derive(config.seed, "profiles", 0))
    profiles = profiles[:: max(1, len(profiles) // _PROFILES)][:_PROFILES]
    preset = get_preset(config.preset)
    chat = ChatFormat(tokenizer, system_prompt(config.language, config.think), config.think)
    openings, utterances = [], [0]
    for script in _SCRIPTS:
        for dialogue in play(profiles, ScriptedPolicy(script, config.language), agent, preset, seed=config.seed):
            openings.append(len(chat.opening(dialogue.opening)) + len(chat.lead))
            utterances += [len(chat.turn(turn.reaction.utterance)) for turn in dialogue.turns if turn.reaction]
    return Longest(
        opening=max(openings),
        utterance=max(utterances),
        replies=preset.replies,
        max_tokens=config.max_tokens,
        think=config.think,
        heard=len(openings) + len(utterances) - 1,
    )
