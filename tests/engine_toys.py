"""What the tests of engines share: users whose words are fixed, and a check against plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlver.core.dialogue import Dialogue, Opening, Reaction, TokenRecord
from rlver.core.emotion import get_preset
from rlver.core.profile import Profile
from rlver.policies.local import LocalPolicy
from rlver.stories.generate import generate

PATIENT = get_preset("sage").model_copy(
    update={"name": "patient", "fails_below": -1.0, "ends_at_success": False, "replies": 5}
)
"""No dialogue ends early, except with a goodbye of the user."""
WORDS = ["Why?", "My sister laughed.", "I did not sleep at all, and nobody asked me why.", "我昨天把钥匙弄丢了。"]


def profiles(count: int) -> list[Profile]:
    """Profiles with names of their own."""
    return generate("en", "train", count, 3)


class Toy:
    """A user that answers at once with utterances of different lengths, and says goodbye after two to five replies."""

    identity = "toy"

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first fact of the story."""
        return Opening(dialogue.profile.story.facts[0].say, 0)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """The emotion never changes."""
        turn, mark = len(dialogue.turns), seed % 4
        words = " ".join(WORDS[(mark + turn + k) % len(WORDS)] for k in range(1 + (mark + turn) % 3))
        return Reaction(change=0, utterance="Goodbye." if turn == 2 + mark else words)


def records(dialogue: Dialogue) -> list[TokenRecord]:
    """How each reply of a dialogue was sampled."""
    return [turn.tokens for turn in dialogue.turns if turn.tokens is not None]


def sampled_ids(dialogues: Sequence[Dialogue]) -> list[list[list[int]]]:
    """The sampled ids of all replies, by dialogue and turn."""
    return [[record.token_ids for record in records(dialogue)] for dialogue in dialogues]


def check_logprobs(model: Any, dialogues: Sequence[Dialogue], temperature: float = 1.0) -> None:
    """Compare the recorded log-probabilities with those of a plain forward pass over prompt and reply."""
    for dialogue in dialogues:
        for record in records(dialogue):
            start = len(record.prompt_ids)
            ids = torch.tensor([record.prompt_ids + record.token_ids])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
            expected = torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, ids[0, start:, None])[:, 0]
            assert torch.allclose(torch.tensor(record.logprobs), expected, atol=1e-4)


def policy(model: Any, tokenizer: Any, **options: Any) -> LocalPolicy:
    """A local policy whose replies are 1 to 12 tokens long."""
    return LocalPolicy(model, tokenizer, "en", **{"max_tokens": 12, **options})
