"""How many calls an endpoint gets, and how long the client waits for it."""

from __future__ import annotations

from pydantic import Field

from rlver.core.profile import Frozen


class Limits(Frozen):
    """The limits of one client. All times are in seconds."""

    concurrency: int = Field(default=32, ge=1)
    """Largest number of calls in flight."""
    per_minute: int | None = Field(default=None, ge=1)
    """Largest number of calls per minute, as providers define rate limits. None sets no limit."""
    attempts: int = Field(default=6, ge=1)
    """Largest number of attempts per call."""
    timeout: float = Field(default=90.0, gt=0)
    """Deadline of one attempt."""
    connect: float = Field(default=5.0, gt=0)
    """Deadline for making a connection."""
    longest_wait: float = Field(default=60.0, ge=0)
    """Longest pause before another attempt. An endpoint that asks for a longer one (Retry-After) has failed."""
    patience: float = Field(default=20.0, gt=0)
    """An endpoint that refuses every connection for this long is given up, which ends the run."""
