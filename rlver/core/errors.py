"""The exceptions that users see. Their message is one sentence that says what is wrong and where."""

from __future__ import annotations


class RlverError(Exception):
    """Bad input or an unusable resource. The message is one sentence that says what, where and what to do."""


class CallFailed(RlverError):
    """A call to a model or an endpoint failed for good. The dialogue that needed it ends unscored; others continue."""


class Unreadable(CallFailed):
    """A model answered, but not in the required form."""
