"""The curriculum: whom the policy meets next. Too hard too early collapses, too easy teaches nothing."""

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
"""Generated profiles to choose from, as a multiple of those that a step needs."""


class Meeting(NamedTuple):
    """Whom the policy talks with: a profile, and how much its user lets show."""

    profile: Profile
    user: UserType


class Curriculum:
    """Draws the meetings of a step from (seed, step) and, if adaptive, from how often the policy has succeeded."""

    def __init__(self, config: TrainConfig, profiles: Sequence[Profile] | None = None) -> None:
        self.config = config
        self._profiles = profiles
        """Those of the user's file; None: they are generated."""
        self.rates: dict[str, float] = {}
        """Success rate by kind of user, `vanilla/praise` for example; kinds not yet met are not in it."""

    def draw(self, step: int, count: int, refill: int = 0) -> list[Meeting]:
        """The meetings of a step; `refill` counts how often the step has asked before."""
        if self.config.curriculum != "adaptive":
            profiles = self._next(step, count, refill)
            return [Meeting(*row) for row in zip(profiles, self._users(step, count, refill), strict=True)]
        rng = random.Random(derive(self.config.seed, "curriculum", step, refill))
        kinds = [(user, need) for user in get_args(UserType) for need in Intention]
        weights = [self.weight(user, need, step) for user, need in kinds]
        pool = self._pool(step, count, refill)
        meetings = []
        for user, need in even(kinds, weights, count, rng):
            found = pool.get(need) or [profile for row in pool.values() for profile in row]
            meetings.append(Meeting(found.pop(rng.randrange(len(found))) if len(found) > 1 else found[0], user))
        return meetings

    def weight(self, user: UserType, need: Intention, step: int) -> float:
        """How much a kind of user is sought: 1 - 2 |success rate - 0.5|, at least the floor."""
        if step < self.config.curriculum_warmup:
            return float(user == "vanilla")
        rate = self.rates.get(f"{user}/{need}", 0.0)
        return max(self.config.curriculum_floor, 1 - 2 * abs(rate - 0.5))

    def observe(self, met: Iterable[tuple[Meeting, Sequence[Dialogue]]]) -> None:
        """Learn from the dialogues of a step how often each kind of user ends delighted."""
        found: dict[str, list[float]] = defaultdict(list)
        for meeting, dialogues in met:
            found[f"{meeting.user}/{meeting.profile.intention}"] += [float(dialogue.success) for dialogue in dialogues]
        for kind, successes in sorted(found.items()):
            keep = self.config.curriculum_memory if kind in self.rates else 0.0
            self.rates[kind] = keep * self.rates.get(kind, 0.0) + (1 - keep) * fmean(successes)

    def metrics(self) -> dict[str, float]:
        """The success rates, by kind of user; nothing where they do not matter."""
        adaptive = self.config.curriculum == "adaptive"
        return {f"curriculum/{kind}": rate for kind, rate in sorted(self.rates.items())} if adaptive else {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.rates = dict(state["rates"])

    def _users(self, step: int, count: int, refill: int) -> list[UserType]:
        """The types of users where success rates do not matter."""
        if self.config.curriculum == "none":
            return [self.config.user] * count
        hard = round(count * share(self.config.schedule or {}, step))
        types: tuple[UserType, UserType] = ("challenging", "vanilla")
        users = [types[i >= hard] for i in range(count)]
        return random.Random(derive(self.config.seed, "users", step, refill)).sample(users, count)

    def _next(self, step: int, count: int, refill: int) -> list[Profile]:
        """Profiles generated afresh, or the next ones of the given file in a shuffled order."""
        place = (step, refill) if refill else (step,)
        if self._profiles is None:
            return generate(self.config.language, "train", count, derive(self.config.seed, "profiles", *place))
        if refill:
            return random.Random(derive(self.config.seed, "refill", *place)).choices(self._profiles, k=count)
        drawn = []
        for number in range(step * count, (step + 1) * count):
            epoch, at = divmod(number, len(self._profiles))
            order = random.Random(derive(self.config.seed, "epoch", epoch)).sample(
                range(len(self._profiles)), len(self._profiles)
            )
            drawn.append(self._profiles[order[at]])
        return drawn

    def _pool(self, step: int, count: int, refill: int) -> dict[Intention, list[Profile]]:
        """Profiles to choose from, by intention."""
        pool: dict[Intention, list[Profile]] = defaultdict(list)
        for profile in self._profiles or self._next(step, _POOL * count, refill):
            pool[profile.need].append(profile)
        return pool


def share(schedule: dict[int, float], step: int) -> float:
    """The value of a schedule {step: value} at a step: straight lines between its points, flat outside of them."""
    points = sorted(schedule.items())
    after = bisect_right([at for at, _ in points], step)
    if after == 0 or after == len(points):
        return points[max(0, after - 1)][1]
    (start, low), (end, high) = points[after - 1 : after + 1]
    return low + (high - low) * (step - start) / (end - start)


def even(items: Sequence[T], weights: Sequence[float], count: int, rng: random.Random) -> list[T]:
    """`count` items, each as often as its weight says, up to one: drawn at even distances (systematic sampling)."""
    ends = list(accumulate(weights))
    offset = rng.random()
    last = len(items) - 1
    drawn = [items[min(last, bisect_right(ends, (i + offset) * ends[-1] / count))] for i in range(count)]
    return rng.sample(drawn, count)
