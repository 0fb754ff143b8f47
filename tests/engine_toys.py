"""What the tests of engines share: users that say what they are told to, and a check against plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import get_preset
from rlver.core.profile import Profile
from rlver.policies.local import LocalPolicy, Trace
from rlver.stories.generate import generate

PATIENT = get_preset("sage").model_copy(
    update={"name": "patient", "fails_below": -1.0, "ends_at_success": False, "replies": 5}
)
"""Nobody leaves early, except users who say goodbye."""
WORDS = ["Why?", "My sister laughed.", "I did not sleep at all, and nobody asked me why.", "我昨天把钥匙弄丢了。"]


def profiles(count: int) -> list[Profile]:
    """Users with names of their own."""
    return generate("en", "train", count, 3)


class Toy:
    """A user who answers at once, in words of different length, and leaves after two to five replies."""

    identity = "toy"

    def open(self, profile: Profile, seed: int) -> Opening:
        return Opening(profile.story.facts[0].say, 0, False)

    def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        turn, mark = len(dialogue.turns), seed % 4
        words = " ".join(WORDS[(mark + turn + k) % len(WORDS)] for k in range(1 + (mark + turn) % 3))
        return Reaction(change=0, utterance="Goodbye." if turn == 2 + mark else words)


def check_logprobs(model: Any, traces: Sequence[Trace], temperature: float = 1.0) -> None:
    """What was noted at sampling is what a forward pass over context and reply says."""
    for trace in traces:
        for reply in trace.replies:
            ids = torch.tensor([trace.context[: reply.start] + reply.ids])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, reply.start - 1 : -1]
            expected = torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, ids[0, reply.start :, None])[:, 0]
            assert torch.allclose(torch.tensor(reply.logprobs), expected, atol=1e-4)


def texts(traces: Sequence[Trace]) -> list[list[list[int]]]:
    """The ids of all replies."""
    return [[reply.ids for reply in trace.replies] for trace in traces]


def policy(model: Any, tokenizer: Any, **options: Any) -> LocalPolicy:
    """A local policy whose replies are 1 to 12 tokens long."""
    return LocalPolicy(model, tokenizer, "en", **{"max_tokens": 12, **options})
