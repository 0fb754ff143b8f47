"""What the tests of estimators share: random ragged batches, and how near is near enough."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from numpy.random import Generator

EPSILON = 1e-6
"""What the estimators add to a standard deviation before they divide by it."""
seeds = st.integers(0, 100_000)


def near(wanted: object) -> object:
    """Equal to 1e-6."""
    return pytest.approx(wanted, rel=1e-6, abs=1e-6)


def ragged(rng: Generator, groups: int, group: int) -> list[list[float]]:
    """Numbers for the turns of groups * group dialogues of one to six turns."""
    return [rng.normal(size=rng.integers(1, 7)).tolist() for _ in range(groups * group)]
