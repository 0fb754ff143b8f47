"""The exceptions that people see: a sentence that names what is wrong and where."""

from __future__ import annotations


class RlverError(Exception):
    """Bad input or a failed resource. The message is one sentence that says what, where and what to do."""


class CallFailed(RlverError):
    """A model or an endpoint failed for good in one place. The dialogue that needed it ends; the others go on."""


class Unreadable(CallFailed):
    """A model answered, but not in the form that was asked for."""
