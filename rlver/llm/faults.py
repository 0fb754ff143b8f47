"""What the errors of an endpoint, or of the way to it, tell."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import APIStatusError


def never_connected(error: BaseException) -> bool:
    """Whether there was no connection at all, rather than one that broke, whichever transport tells."""
    names = []
    cause = error.__cause__
    while cause is not None:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    # Over aiohttp a connection that broke is a "ConnectTimeout", too; what lies beneath tells them apart.
    broke = any(name in ("ServerDisconnectedError", "ClientOSError", "ClientPayloadError") for name in names)
    return not broke and any("Connect" in name for name in names)


def message_of(error: APIStatusError) -> str:
    """What the endpoint says about its error, its code first: a used-up quota is named by that alone."""
    body = error.body
    if not isinstance(body, Mapping):
        return str(body or error.message)
    message = str(body.get("message") or body)
    return f"{body['code']}: {message}" if isinstance(body.get("code"), str) else message


def what(error: BaseException) -> str:
    """The cause in a few words."""
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__


def retry_after(error: APIStatusError) -> float | None:
    """Seconds that the endpoint asks us to wait."""
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
