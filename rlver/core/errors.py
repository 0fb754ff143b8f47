"""The exceptions that users see. Their message is one sentence that says what is wrong and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RlverError(Exception):
    """Bad input or an unusable resource. The message is one sentence that says what, where and what to do."""


class CallFailed(RlverError):
    """A call to a model or an endpoint failed for good. The dialogue that needed it ends unscored; others continue."""


class Unreadable(CallFailed):
    """A model answered, but not in the required form."""


def first_problem(error: ValidationError, whole: str = "") -> str:
    """The first error that pydantic reports, as `path.of.field: message`.

    Args:
        whole: what to write instead of the field if the error concerns the object as a whole.
    """
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field}: {first['msg']}" if field else first["msg"]
