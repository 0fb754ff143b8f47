"""What a batch of dialogues says about a policy: scores, acts, lengths, repetition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from rlver.core.dialogue import Dialogue, StopReason
from rlver.users.embedded.judge import suits


def dialogue_metrics(dialogues: Sequence[Dialogue], *, always_fit: bool = False) -> dict[str, float]:
    """Means over dialogues, or over replies for `tokens_per_reply` and `repeated_replies`.

    `fit` is the share of all dialogue acts that suit the hidden intention. Only embedded users report acts, so that it
    is left out for others.

    Args:
        always_fit: whether `fit` is 0 rather than left out if no act was reported, as embedded users need it.
    """
    by_intention: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        by_intention[dialogue.profile.intention].append(100 * dialogue.reward)
    fits = [
        suits(act, dialogue.profile.need)
        for dialogue in dialogues
        for turn in dialogue.turns
        if turn.reaction
        for act in turn.reaction.acts
    ]
    texts = [[turn.reply for turn in dialogue.turns] for dialogue in dialogues]
    repeated = [text in replies[:i] for replies in texts for i, text in enumerate(replies)]
    fit = {"fit": fmean(fits) if fits else 0.0} if fits or always_fit else {}
    return {
        "reward": fmean(dialogue.reward for dialogue in dialogues),
        "success": fmean(dialogue.success for dialogue in dialogues),
        "failure": fmean(dialogue.failure for dialogue in dialogues),
        "turns": fmean(len(dialogue.turns) for dialogue in dialogues),
        **fit,
        "tokens_per_reply": fmean(len(turn.tokens.token_ids) for d in dialogues for turn in d.turns if turn.tokens),
        "repeated_replies": fmean(repeated),
        "bad_format": fmean(dialogue.stop is StopReason.BAD_FORMAT for dialogue in dialogues),
        **{f"score/{intention}": fmean(scores) for intention, scores in sorted(by_intention.items())},
    }
