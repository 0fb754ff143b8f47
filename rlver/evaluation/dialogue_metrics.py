"""Metrics of a batch of dialogues, for the log of a training run: scores, acts, lengths and repetition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from rlver.core.dialogue import Dialogue, StopReason
from rlver.evaluation.act_matrix import fitting_acts


def dialogue_metrics(dialogues: Sequence[Dialogue], *, always_fit: bool = False) -> dict[str, float]:
    """The metrics by name.

    `tokens_per_reply` and `repeated_replies` (the share of replies that are identical to an earlier one of their
    dialogue) are means over replies, and `fit` is the share of the acts that suit the hidden intention. The others are
    means over dialogues. Rewards and shares are in [0, 1]; `score/INTENTION` is in [0, 100].

    `fit` is left out if the users reported no acts, because then nothing is known about acts.

    Args:
        dialogues: at least one reply of them was sampled by a local model.
        always_fit: report a `fit` of 0 if there is no act. Set it for embedded users, which report all acts.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        scores[dialogue.profile.intention].append(100 * dialogue.reward)
    fits = [fit for dialogue in dialogues for fit in fitting_acts(dialogue.profile.intention, dialogue.turns)]
    replies_of_dialogues = [[turn.reply for turn in dialogue.turns] for dialogue in dialogues]
    repeated = [reply in replies[:i] for replies in replies_of_dialogues for i, reply in enumerate(replies)]
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
        **{f"score/{intention}": fmean(values) for intention, values in sorted(scores.items())},
    }
