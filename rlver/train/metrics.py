"""What a step's dialogues say about the policy: scores, acts, lengths, repetition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from rlver.core.dialogue import Dialogue, StopReason
from rlver.users.embedded.judge import suits


def dialogue_metrics(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Metrics of played dialogues."""
    by_intention: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        by_intention[dialogue.profile.intention].append(100 * dialogue.reward)
    acts = [
        suits(act, dialogue.profile.need)
        for dialogue in dialogues
        for turn in dialogue.turns
        if turn.reaction
        for act in turn.reaction.acts
    ]
    texts = [[turn.reply for turn in dialogue.turns] for dialogue in dialogues]
    repeated = [text in row[:i] for row in texts for i, text in enumerate(row)]
    return {
        "reward": fmean(dialogue.reward for dialogue in dialogues),
        "success": fmean(dialogue.success for dialogue in dialogues),
        "failure": fmean(dialogue.failure for dialogue in dialogues),
        "turns": fmean(len(dialogue.turns) for dialogue in dialogues),
        "fit": fmean(acts) if acts else 0.0,
        "tokens_per_reply": fmean(len(turn.tokens.token_ids) for d in dialogues for turn in d.turns if turn.tokens),
        "repeated_replies": fmean(repeated),
        "bad_format": fmean(dialogue.stop is StopReason.BAD_FORMAT for dialogue in dialogues),
        **{f"score/{intention}": fmean(scores) for intention, scores in sorted(by_intention.items())},
    }
