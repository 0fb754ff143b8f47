"""The one exception that people see: a sentence that names what is wrong and where."""

from __future__ import annotations


class RlverError(Exception):
    """Bad input or a failed resource. The message is one sentence that says what, where and what to do."""
