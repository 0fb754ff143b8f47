"""Cross-validation: how well a fit judges models and profiles that it has never met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlver.core.errors import RlverError
from rlver.users.calibration.fit import Design
from rlver.users.calibration.measures import final_scores, model_measures, turn_measures
from rlver.users.calibration.recorded import Judged, Recorded

FOLDS = 5
HELD_OUT = 2
"""Models that are held out together."""


def cross_validate(
    rows: Sequence[Judged],
    dialogues: Sequence[Recorded],
    seed: int = 0,
    on_fit: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Every judged reply predicted once by a fit that saw neither its profile nor, in `unseen_models`, its model.

    Profiles are dealt into five folds, models into pairs, both in the order of their names.

    Raises:
        RlverError: there are fewer than five profiles or three models.
    """
    models = sorted({row.model for row in rows})
    profiles = sorted({row.profile for row in rows})
    if len(profiles) < FOLDS or len(models) <= HELD_OUT:
        raise RlverError(
            f"cross-validation needs {FOLDS} profiles and {HELD_OUT + 1} models at least; "
            f"here are {len(profiles)} and {len(models)}."
        )
    design = Design(rows)
    fold_N = np.array([profiles.index(row.profile) % FOLDS for row in rows])
    pair_N = np.array([models.index(row.model) // HELD_OUT for row in rows])
    groups = {"unseen_models": pair_N, "seen_models": np.full(len(rows), -1)}
    fits = FOLDS * sum(len(set(group_N.tolist())) for group_N in groups.values())
    done = 0
    found: dict[str, Any] = {"n": len(rows), "models": len(models), "profiles": len(profiles), "fits": fits}
    change_N = np.array([row.change for row in rows])
    for name, group_N in groups.items():
        total_N = np.zeros(len(rows))
        for fold in range(FOLDS):
            for group in sorted(set(group_N.tolist())):
                tested_N = (fold_N == fold) & (group_N == group)
                # Without held-out models the group is everybody, and only profiles are held out.
                trained_N = (fold_N != fold) & ((group_N != group) | (group == -1))
                solved = design.solve(trained_N)
                total_N[tested_N] = design.predict(solved)[tested_N]
                done += 1
                if on_fit:
                    on_fit(done, fits)
        found[name] = {
            "turn": turn_measures(total_N, change_N, [row.profile for row in rows], seed),
            "models": model_measures(final_scores(rows, dialogues, total_N.tolist()), dialogues, seed),
        }
    return found
