"""The client of one endpoint: every wait has a deadline and every retry an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rlver.core.errors import RlverError
from rlver.llm.answer_cache import Cache, request_key
from rlver.llm.anyllm import AnyProvider
from rlver.llm.call_errors import OPTIONAL_PARAMETERS, cause_of, classify_error, unusable
from rlver.llm.endpoint import Endpoint, one_line
from rlver.llm.limits import Limits
from rlver.llm.retries import RetryableError, Tally, with_retries
from rlver.llm.usage import Tokens, count

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter
    from openai import AsyncOpenAI

T = TypeVar("T")
Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""

LONGEST_ANSWER = 50_000
"""Characters. A longer answer is a fault: the text of a model that babbles on must not fill the next prompt."""

SPACING = 0.0015
"""Least seconds between two calls. Without it, dialogues that begin together send all their calls at the same moment
and wait for each other for many turns: see benchmarks/results/remote_speed.md for what it gains."""

_Send = Callable[[dict[str, Any]], Awaitable[T]]
"""Sends a request once and returns what it reads from the answer."""


class Completion(NamedTuple):
    """A model's answer to a chat."""

    text: str
    tokens: Tokens
    cached: bool
    """Whether it came from the cache."""
    key: str = ""
    """Its key in the cache; empty if the client has no cache."""


class LLM:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        endpoint: see `parse_endpoint`.
        limits: apply to this client as a whole, so share one client per endpoint.
        cache: answers requests that were answered before.

    Raises:
        RlverError: the key is missing.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits | None = None, cache: Cache | None = None) -> None:
        self.endpoint = endpoint
        self.limits = limits or Limits()
        self.cache = cache
        self.tally = Tally()
        self._key = endpoint.key()
        self._provider = None if endpoint.base_url else AnyProvider(endpoint.model.partition("/")[0])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI
        self._slots: asyncio.Semaphore
        self._rate_limiter: AsyncLimiter | None
        self._next_send = 0.0
        """When the next call may be sent, on the monotonic clock."""
        self._unreachable_since: float | None = None
        """When the first of an unbroken row of refused connections happened, on the monotonic clock."""

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Return the model's answer to a chat.

        Args:
            seed: sent as a non-negative 31-bit number. It is a part of the request and thus of its key in the cache.
            schema: JSON schema of the answer, with a `title`. Endpoints that do not support schemas ignore it.

        Raises:
            CallFailed: no attempt gave a usable answer; other requests may still succeed.
            RlverError: the endpoint cannot be used at all (key, model, address, no connection).
        """
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": list(messages)}
        for name, value in (("temperature", temperature), ("top_p", top_p), ("max_tokens", max_tokens)):
            if value is not None:
                request[name] = value
        if seed is not None:
            request["seed"] = seed % 2**31
        if schema is not None:
            json_schema = {"name": schema["title"], "schema": schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        key = request_key({**request, "base_url": self.endpoint.base_url}) if self.cache else ""
        if self.cache and (answer := self.cache.get(key)):
            self.tally.cached += 1
            return self._completion(answer, key, cached=True)
        answer = await self._call(request, self._send_chat, optional=OPTIONAL_PARAMETERS)
        if self.cache:
            self.cache.put(key, answer)
        return self._completion(answer, key, cached=False)

    async def post(self, url: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Post a request other than a chat, unchanged, under the same limits, deadline and retries.

        Args:
            url: absolute, or relative to the base address.
            read: makes the result from the decoded answer (from its text if it is not JSON). If it raises ValueError,
                TypeError, AttributeError or LookupError, the answer was unusable and the request is sent again.

        Raises:
            CallFailed, RlverError: as `complete`.
        """

        async def send(request: dict[str, Any]) -> T:
            return read(await self._client.post(url, body=request, cast_to=object))

        return await self._call(dict(body), send)

    def forget(self, answers: Sequence[Completion]) -> None:
        """Drop answers from the cache, so that the same requests are sent anew next time."""
        for answer in answers:
            if self.cache and answer.key:
                self.cache.drop(answer.key)

    async def check(self) -> None:
        """Check within seconds that something answers at the address.

        Raises:
            RlverError: nothing answers, or the key is refused.
        """
        import openai

        if self._provider:
            return  # any-llm offers no request that costs nothing
        self._bind_to_running_loop()
        why = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(min(8.0, self.limits.timeout)):
                    await self._client.models.list()
                return
            except openai.APIStatusError as error:
                if error.status_code in (401, 403):
                    raise unusable(error, self.endpoint, self._key) from None
                return  # something is there, even if it answers with an error
            except (openai.OpenAIError, TimeoutError, ValueError, TypeError) as error:
                why = one_line(cause_of(error), self._key)
            await asyncio.sleep(0.5)
        raise RlverError(f"{self.endpoint.spec}: nothing answers there ({why}); is the server running?")

    async def close(self) -> None:
        """Close all connections. The client can be used again."""
        if self._loop is asyncio.get_running_loop() and not self._provider:
            await self._client.close()
        self._loop = None

    def _completion(self, answer: Mapping[str, Any], key: str, cached: bool) -> Completion:
        tokens = Tokens(calls=1, input=answer["input"], output=answer["output"])
        count(self.endpoint.spec, tokens)
        return Completion(answer["text"], tokens, cached, key)

    def _bind_to_running_loop(self) -> None:
        """Make new connections in a new event loop: they cannot be used in another one."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        import openai
        from aiolimiter import AsyncLimiter

        self._loop = loop
        connections = self.limits.concurrency + 8
        if not self._provider:
            self._client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.endpoint.base_url,
                max_retries=0,  # `with_retries` counts and bounds all retries
                http_client=openai.DefaultAioHttpClient(
                    limits=type(openai.DEFAULT_CONNECTION_LIMITS)(
                        max_connections=connections, max_keepalive_connections=connections
                    )
                ),
                timeout=openai.Timeout(self.limits.timeout, connect=self.limits.connect),
            )
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        per_minute = self.limits.per_minute
        # Calls are spread over the minute, in bursts of one second, instead of all being sent at its start.
        burst = max(1.0, per_minute / 60) if per_minute else 0.0
        self._rate_limiter = AsyncLimiter(burst, burst * 60 / per_minute) if per_minute else None
        self._next_send = 0.0
        self._unreachable_since = None

    async def _call(self, request: dict[str, Any], send: _Send[T], optional: Sequence[str] = ()) -> T:
        """Send a request until there is an answer. `optional` names the parameters that it can do without."""
        self._bind_to_running_loop()

        async def attempt() -> T:
            return await self._attempt(request, send, optional)

        return await with_retries(attempt, self.limits, self.tally, self.endpoint.spec)

    async def _attempt(self, request: dict[str, Any], send: _Send[T], optional: Sequence[str]) -> T:
        """Send a request once. Raises what `classify_error` makes of a failure."""
        async with self._slots:
            await self._wait_for_turn()
            sent = self._without_dropped(request, optional)
            self.tally.calls += 1
            try:
                async with asyncio.timeout(self.limits.timeout):
                    answer = await send(sent)
            except Exception as error:
                droppable = [name for name in optional if name in sent]
                outcome = classify_error(error, droppable, self.endpoint, self._key, self.limits)
                self._learn_from(outcome)
                if outcome is error:
                    raise
                raise outcome from None
        self._unreachable_since = None
        return answer

    async def _wait_for_turn(self) -> None:
        """Wait as long as the rate limit, the endpoint's Retry-After and the spacing of calls demand."""
        if self._rate_limiter:
            await self._rate_limiter.acquire()
        now = time.monotonic()
        at = max(now, self._next_send)
        self._next_send = at + SPACING
        if at > now:
            await asyncio.sleep(at - now)

    def _without_dropped(self, request: dict[str, Any], optional: Sequence[str]) -> dict[str, Any]:
        """The request without the optional parameters that the endpoint has refused so far."""
        dropped = self.tally.dropped.intersection(optional)
        sent = {name: value for name, value in request.items() if name not in dropped}
        if "max_tokens" in request and "max_tokens" in dropped:
            sent["max_completion_tokens"] = request["max_tokens"]
        return sent

    def _learn_from(self, outcome: Exception) -> None:
        """Remember what a failed attempt says about the endpoint as a whole.

        Raises:
            RlverError: the endpoint has been unreachable for longer than `Limits.patience`.
        """
        if not isinstance(outcome, RetryableError) or not outcome.unreachable:
            self._unreachable_since = None
        if not isinstance(outcome, RetryableError):
            return
        now = time.monotonic()
        if outcome.wait:
            self._next_send = max(self._next_send, now + outcome.wait)
        if outcome.unsupported:
            self.tally.dropped.add(outcome.unsupported)
        if outcome.unreachable:
            self._unreachable_since = self._unreachable_since or now
            if now - self._unreachable_since > self.limits.patience:
                patience = f"{self.limits.patience:g} s"
                raise RlverError(f"{self.endpoint.spec}: no connection for {patience} ({outcome}).") from None

    async def _send_chat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a chat and return its text and token counts as the cache stores them."""
        response = await self._post_chat(request)
        text = response["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise RetryableError("an empty answer")
        if len(text) > LONGEST_ANSWER:
            raise RetryableError(f"an answer of {len(text):,} characters")
        usage = response.get("usage") or {}
        return {
            "text": text,
            "input": int(usage.get("prompt_tokens") or 0),
            "output": int(usage.get("completion_tokens") or 0),
        }

    async def _post_chat(self, request: dict[str, Any]) -> Any:
        """Send a chat and return the decoded answer."""
        if self._provider:
            return await self._provider.complete(request | {"model": request["model"].partition("/")[2]})
        # Not `chat.completions.create`, whose types take four times the CPU time (benchmarks/results/remote_speed.md).
        return await self._client.post("/chat/completions", body=request, cast_to=object)
