"""What the failure of one attempt means: another attempt, the end of this call, or the end of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from rlver.core.errors import CallFailed, RlverError
from rlver.llm.anyllm import is_fatal, is_refusal
from rlver.llm.endpoint import Endpoint, one_line
from rlver.llm.limits import Limits
from rlver.llm.retries import RetryableError

if TYPE_CHECKING:
    from openai import APIStatusError

OPTIONAL_PARAMETERS = ("response_format", "seed", "temperature", "top_p", "max_tokens")
"""Parameters of a chat that an endpoint may not know. What it refuses it no longer gets, and the log says so."""
_RETRYABLE = (408, 409, 425, 429)
_UNUSABLE = (401, 402, 403, 404)
"""Statuses that every call would get."""


def classify_error(
    error: Exception, droppable: Sequence[str], endpoint: Endpoint, key: str, limits: Limits
) -> Exception:
    """What to raise for an exception of one attempt.

    Args:
        droppable: the optional parameters that this attempt sent.
        key: the endpoint's key, which is removed from every message.

    Returns:
        `RetryableError`: another attempt may succeed. `CallFailed`: this request will never be answered, but others
        may be. Any other `RlverError`: the endpoint cannot be used at all. An exception that does not come from the
        endpoint is returned as it is.
    """
    import openai

    if isinstance(error, (RetryableError, RlverError)):
        return error
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error, droppable, endpoint, key, limits)
    why = one_line(cause_of(error), key)
    if isinstance(error, openai.APIConnectionError):
        if never_connected(error):
            return RetryableError(why, unreachable=True)
        return RetryableError(f"no answer, or one that broke off ({why})")
    if isinstance(error, TimeoutError):
        return RetryableError(f"no answer within {limits.timeout:g} s")
    if isinstance(error, (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError)):
        return RetryableError(f"not an answer of a model: {why}")
    if endpoint.base_url:
        return error
    why = one_line(str(error), key)
    if is_fatal(error):
        return RlverError(f"{endpoint.spec}: {why}.")
    if is_refusal(error):
        return CallFailed(f"{endpoint.spec}: refused ({why}).")
    return RetryableError(why)


def _classify_status(
    error: APIStatusError, droppable: Sequence[str], endpoint: Endpoint, key: str, limits: Limits
) -> Exception:
    status, message = error.status_code, one_line(error_message(error), key)
    if status in _UNUSABLE or "insufficient_quota" in message:
        return unusable(error, endpoint, key)
    if status in _RETRYABLE or status >= 500:
        wait = retry_after(error)
        if wait is not None and wait > limits.longest_wait:
            return CallFailed(f"{endpoint.spec}: asks to wait {wait:.0f} s, longer than allowed.")
        return RetryableError(f"status {status}: {message}", wait=wait)
    unsupported = next((name for name in droppable if name in message), None)
    if unsupported is not None:
        return RetryableError(f"does not know the parameter {unsupported}", wait=0.0, unsupported=unsupported)
    return CallFailed(f"{endpoint.spec}: refused the request (status {status}: {message}).")


def unusable(error: APIStatusError, endpoint: Endpoint, key: str) -> RlverError:
    """The error that ends a run because the endpoint answers no call at all."""
    hints = {401: f"check the key in {endpoint.key_variable}", 404: "check the model and the address"}
    hint = hints.get(error.status_code, "the endpoint refuses all calls")
    return RlverError(f"{endpoint.spec}: {hint} (status {error.status_code}: {one_line(error_message(error), key)}).")


def never_connected(error: BaseException) -> bool:
    """Whether no connection was made at all, as opposed to one that broke, over either HTTP transport."""
    names = []
    cause = error.__cause__
    while cause is not None:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    # Over aiohttp a broken connection is a "ConnectTimeout", too; the exceptions beneath tell the two apart.
    broke = any(name in ("ServerDisconnectedError", "ClientOSError", "ClientPayloadError") for name in names)
    return not broke and any("Connect" in name for name in names)


def error_message(error: APIStatusError) -> str:
    """The endpoint's own words about its error, after its error code: some name a used-up quota by code only."""
    body = error.body
    if not isinstance(body, Mapping):
        return str(body or error.message)
    message = str(body.get("message") or body)
    return f"{body['code']}: {message}" if isinstance(body.get("code"), str) else message


def cause_of(error: BaseException) -> str:
    """The cause of an exception in a few words."""
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__


def retry_after(error: APIStatusError) -> float | None:
    """Seconds that the endpoint asks us to wait (Retry-After as seconds or as a date); None if it does not."""
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
