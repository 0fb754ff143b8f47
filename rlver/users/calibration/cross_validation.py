"""Cross-validation: how well a fit judges models and profiles that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlver.core.errors import RlverError
from rlver.users.calibration.fit import Design
from rlver.users.calibration.measures import final_scores, model_measures, turn_measures
from rlver.users.calibration.recorded import JudgedReply, RecordedDialogue

FOLDS = 5
HELD_OUT = 2
"""Number of models that are held out together."""


def cross_validate(
    replies: Sequence[JudgedReply],
    dialogues: Sequence[RecordedDialogue],
    seed: int = 0,
    on_fit: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict every judged reply once, with a fit whose data do not contain its profile.

    In `unseen_models` the data do not contain its model either. Profiles are divided into five folds and models into
    pairs, both in the order of their names.

    Args:
        seed: of the bootstrap.
        on_fit: called with (fits done, fits in all).

    Raises:
        RlverError: there are fewer than five profiles or three models.
    """
    models = sorted({reply.model for reply in replies})
    profiles = sorted({reply.profile for reply in replies})
    if len(profiles) < FOLDS or len(models) <= HELD_OUT:
        raise RlverError(
            f"cross-validation needs at least {FOLDS} profiles and {HELD_OUT + 1} models, but there are "
            f"{len(profiles)} profiles and {len(models)} models."
        )
    design = Design(replies)
    fold_N = np.array([profiles.index(reply.profile) % FOLDS for reply in replies])
    pair_N = np.array([models.index(reply.model) // HELD_OUT for reply in replies])
    groups = {"unseen_models": pair_N, "seen_models": np.full(len(replies), -1)}
    fits = FOLDS * sum(len(set(group_N.tolist())) for group_N in groups.values())
    done = 0
    report: dict[str, Any] = {"n": len(replies), "models": len(models), "profiles": len(profiles), "fits": fits}
    change_N = np.array([reply.change for reply in replies])
    for name, group_N in groups.items():
        total_N = np.zeros(len(replies))
        for fold in range(FOLDS):
            for group in sorted(set(group_N.tolist())):
                tested_N = (fold_N == fold) & (group_N == group)
                # Group -1 contains all models: then only profiles are held out.
                trained_N = (fold_N != fold) & ((group_N != group) | (group == -1))
                solution = design.solve(trained_N)
                total_N[tested_N] = design.predict(solution)[tested_N]
                done += 1
                if on_fit:
                    on_fit(done, fits)
        report[name] = {
            "turn": turn_measures(total_N, change_N, [reply.profile for reply in replies], seed),
            "models": model_measures(final_scores(replies, dialogues, total_N.tolist()), dialogues, seed),
        }
    return report
