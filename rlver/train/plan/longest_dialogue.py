"""The longest dialogue that a run can have, in tokens, estimated before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

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
"""Number of profiles that scripted policies talk with."""
_SCRIPTS = ("oracle", "generic")
"""The first keeps the user talking to the end, the second makes the user express disappointment."""


@dataclass(frozen=True)
class LongestDialogue:
    """Lengths in tokens, the tokens of the chat template included."""

    opening: int
    """System prompt and the longest first utterance."""
    utterance: int
    """The longest later utterance."""
    replies: int
    """Largest number of replies in a dialogue."""
    max_tokens: int
    """Largest number of tokens in a reply, thinking included."""
    think: bool
    heard: int
    """Number of utterances that were measured."""

    @property
    def context(self) -> int:
        """Largest number of tokens in a row of the KV cache. A reply that was cut off is closed by one more token."""
        return self.opening + (self.replies - 1) * (self.max_tokens + 1 + self.utterance) + self.max_tokens

    @property
    def sample(self) -> int:
        """Largest number of tokens of a dialogue in training. With thinking, replies stand beside the context, too."""
        return self.context + (self.replies - 1) * self.max_tokens * self.think

    @property
    def trained(self) -> int:
        """Largest number of trained tokens of a dialogue."""
        return self.replies * self.max_tokens


def longest_dialogue(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, user: User, profiles: Sequence[Profile] | None
) -> LongestDialogue:
    """The longest dialogue: every reply has all its tokens, and every utterance is as long as the longest measured one.

    Utterances are measured by letting scripted policies talk with the run's user about up to 48 of its profiles.

    Args:
        profiles: those that the run trains on; None if they are generated.
    """
    if profiles is None:
        profiles = generate(config.language, "train", _PROFILES, derive(config.seed, "profiles", 0))
    profiles = profiles[:: max(1, len(profiles) // _PROFILES)][:_PROFILES]
    chat = ChatFormat(tokenizer, system_prompt(config.language, config.think), config.think)
    openings, utterances = [], [0]
    for script in _SCRIPTS:
        policy = ScriptedPolicy(script, config.language)
        for dialogue in play(profiles, policy, user, config.rules, seed=config.seed):
            openings.append(len(chat.opening(dialogue.opening)) + len(chat.lead))
            utterances += [len(chat.turn(turn.reaction.utterance)) for turn in dialogue.turns if turn.reaction]
    return LongestDialogue(
        opening=max(openings),
        utterance=max(utterances),
        replies=config.rules.replies,
        max_tokens=config.max_tokens,
        think=config.think,
        heard=len(openings) + len(utterances) - 1,
    )
