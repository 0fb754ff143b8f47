"""Retries: which attempts are repeated, how often, and how long the client waits in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from rlver.core.errors import CallFailed
from rlver.llm.limits import Limits

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

_UNREACHABLE_FACTOR = 5
"""Refused connections get this many times the usual attempts: a server that is down is down for every call, and
`Limits.patience` ends the run."""
_UNREACHABLE_WAIT = 2.0
"""Seconds. Longest pause after a refused connection, so that a server that comes up is noticed soon."""
_jitter = random.Random()
"""Not the global generator: what a seeded run draws must not depend on the number of retries."""


class RetryableError(Exception):
    """An attempt failed in a way that another attempt may mend.

    Args:
        reason: what went wrong, in a few words without keys.
        wait: seconds that the endpoint asked us to wait; None for exponential backoff.
        unreachable: whether no connection could be made.
        unsupported: name of a request parameter that the endpoint does not know.
    """

    def __init__(
        self, reason: str, *, wait: float | None = None, unreachable: bool = False, unsupported: str = ""
    ) -> None:
        super().__init__(reason)
        self.wait, self.unreachable, self.unsupported = wait, unreachable, unsupported


class Tally:
    """Counts of what one client did in this process."""

    def __init__(self) -> None:
        self.calls = 0
        """Attempts that were sent."""
        self.cached = 0
        """Answers that came from the cache."""
        self.retries = 0
        self.failed = 0
        """Calls that used up all their attempts."""
        self.dropped: set[str] = set()
        """Request parameters that the endpoint does not know and no longer gets."""


async def with_retries(attempt: Callable[[], Awaitable[T]], limits: Limits, tally: Tally, spec: str) -> T:
    """Call `attempt` until it succeeds, and return its result. Only `RetryableError` leads to another attempt.

    Args:
        tally: counts the retries and the call that fails for good.
        spec: names the endpoint in the error message.

    Raises:
        CallFailed: as many attempts failed as `limits` permits.
    """
    from tenacity import AsyncRetrying, retry_if_exception_type

    def attempts_used_up(state: RetryCallState) -> bool:
        factor = _UNREACHABLE_FACTOR if _last_error(state).unreachable else 1
        return state.attempt_number >= limits.attempts * factor

    def pause(state: RetryCallState) -> float:
        # Jitter keeps callers that failed together apart.
        error = _last_error(state)
        if error.wait is not None:
            return error.wait + _jitter.uniform(0, 0.25)
        longest = _UNREACHABLE_WAIT if error.unreachable else limits.longest_wait
        return min(longest, 0.5 * 2 ** (state.attempt_number - 1)) * _jitter.uniform(0.5, 1.0)

    def count_retry(state: RetryCallState) -> None:
        tally.retries += 1

    def give_up(state: RetryCallState) -> T:
        tally.failed += 1
        raise CallFailed(f"{spec}: {state.attempt_number} attempts failed (the last: {_last_error(state)}).")

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(RetryableError),
        stop=attempts_used_up,
        wait=pause,
        sleep=asyncio.sleep,
        before_sleep=count_retry,
        retry_error_callback=give_up,
    )
    return await retrying(attempt)


def _last_error(state: RetryCallState) -> RetryableError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, RetryableError)
    return error
