"""The curriculum: which users the policy meets next.

Users that are too hard too early make a policy collapse, and users that are too easy teach it nothing.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any, NamedTuple, TypeVar, get_args

from rlver.core.dialogue import Dialogue
from rlver.core.interfaces import UserType
from rlver.core.profile import Intention, Profile
from rlver.core.seeds import derive
from rlver.stories.generate import generate
from rlver.train.config import TrainConfig

T = TypeVar("T")

_POOL = 4
"""Number of generated profiles to choose from, as a multiple of those that a step needs."""


class Meeting(NamedTuple):
    """A user that the policy meets: a profile, and the user type."""

    profile: Profile
    user_type: UserType


class Curriculum:
    """Draws the meetings of a step from (seed, step) and, if adaptive, from the policy's success rates so far.

    A kind of user is a user type together with a hidden intention, `vanilla/praise` for example.

    Args:
        profiles: those to draw from; by default they are generated from the training stories.
    """

    def __init__(self, config: TrainConfig, profiles: Sequence[Profile] | None = None) -> None:
        self.config = config
        self._profiles = profiles
        self.success_rates: dict[str, float] = {}
        """Success rate by kind of user. Kinds that the policy has not met yet are missing."""

    def draw(self, step: int, count: int, refill: int = 0) -> list[Meeting]:
        """`count` meetings for a step; `refill` is the number of earlier draws in this step."""
        if self.config.curriculum != "adaptive":
            profiles = self._draw_profiles(step, count, refill)
            return [Meeting(*row) for row in zip(profiles, self._draw_user_types(step, count, refill), strict=True)]
        rng = random.Random(derive(self.config.seed, "curriculum", step, refill))
        kinds = [(user_type, intention) for user_type in get_args(UserType) for intention in Intention]
        weights = [self.weight(*kind, step) for kind in kinds]
        pool = self._pool(step, count, refill)
        meetings = []
        for user_type, intention in systematic_sample(kinds, weights, count, rng):
            profiles = pool.get(intention) or [profile for row in pool.values() for profile in row]
            profile = profiles.pop(rng.randrange(len(profiles))) if len(profiles) > 1 else profiles[0]
            meetings.append(Meeting(profile, user_type))
        return meetings

    def weight(self, user_type: UserType, intention: Intention, step: int) -> float:
        """How often a kind of user is drawn: 1 - 2 |success rate - 0.5|, but at least `curriculum_floor`."""
        if step < self.config.curriculum_warmup:
            return float(user_type == "vanilla")
        rate = self.success_rates.get(f"{user_type}/{intention}", 0.0)
        return max(self.config.curriculum_floor, 1 - 2 * abs(rate - 0.5))

    def observe(self, played: Iterable[tuple[Meeting, Sequence[Dialogue]]]) -> None:
        """Update the success rates with the dialogues of a step."""
        successes: dict[str, list[float]] = defaultdict(list)
        for meeting, dialogues in played:
            kind = f"{meeting.user_type}/{meeting.profile.intention}"
            successes[kind] += [float(dialogue.success) for dialogue in dialogues]
        for kind, values in sorted(successes.items()):
            memory = self.config.curriculum_memory if kind in self.success_rates else 0.0
            self.success_rates[kind] = memory * self.success_rates.get(kind, 0.0) + (1 - memory) * fmean(values)

    def metrics(self) -> dict[str, float]:
        """The success rates by kind of user, if the curriculum depends on them."""
        if self.config.curriculum != "adaptive":
            return {}
        return {f"curriculum/{kind}": rate for kind, rate in sorted(self.success_rates.items())}

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {"rates": self.success_rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.success_rates = dict(state["rates"])

    def _draw_user_types(self, step: int, count: int, refill: int) -> list[UserType]:
        """User types without regard to success rates."""
        if self.config.curriculum == "none":
            return [self.config.user_type] * count
        challenging = round(count * interpolate(self.config.schedule or {}, step))
        types: tuple[UserType, UserType] = ("challenging", "vanilla")
        user_types = [types[i >= challenging] for i in range(count)]
        return random.Random(derive(self.config.seed, "users", step, refill)).sample(user_types, count)

    def _draw_profiles(self, step: int, count: int, refill: int) -> list[Profile]:
        """New profiles, or the next ones of the given profiles, which are shuffled anew for every pass over them."""
        place = (step, refill) if refill else (step,)
        if self._profiles is None:
            return generate(self.config.language, "train", count, derive(self.config.seed, "profiles", *place))
        if refill:
            return random.Random(derive(self.config.seed, "refill", *place)).choices(self._profiles, k=count)
        profiles = []
        for number in range(step * count, (step + 1) * count):
            epoch, index = divmod(number, len(self._profiles))
            order = random.Random(derive(self.config.seed, "epoch", epoch)).sample(
                range(len(self._profiles)), len(self._profiles)
            )
            profiles.append(self._profiles[order[index]])
        return profiles

    def _pool(self, step: int, count: int, refill: int) -> dict[Intention, list[Profile]]:
        """Profiles to choose from, by intention."""
        pool: dict[Intention, list[Profile]] = defaultdict(list)
        for profile in self._profiles or self._draw_profiles(step, _POOL * count, refill):
            pool[profile.need].append(profile)
        return pool


def interpolate(schedule: dict[int, float], step: int) -> float:
    """The value of a schedule {step: value} at a step: linear between its points, constant outside them."""
    points = sorted(schedule.items())
    after = bisect_right([at for at, _ in points], step)
    if after == 0 or after == len(points):
        return points[max(0, after - 1)][1]
    (start, low), (end, high) = points[after - 1 : after + 1]
    return low + (high - low) * (step - start) / (end - start)


def systematic_sample(items: Sequence[T], weights: Sequence[float], count: int, rng: random.Random) -> list[T]:
    """`count` items in random order, each drawn as often as its weight says, rounded up or down.

    Systematic sampling: draws lie at equal distances on the line of cumulated weights.
    """
    ends = list(accumulate(weights))
    offset = rng.random()
    last = len(items) - 1
    drawn = [items[min(last, bisect_right(ends, (i + offset) * ends[-1] / count))] for i in range(count)]
    return rng.sample(drawn, count)
