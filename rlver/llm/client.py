"""The client of one endpoint. Everything that waits has a deadline, everything that retries has an end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import Field

from rlver.core.errors import CallFailed, RlverError
from rlver.core.profile import Frozen
from rlver.llm.answer_cache import Cache, request_key
from rlver.llm.anyllm import AnyProvider, is_fatal, is_refusal
from rlver.llm.endpoint import Endpoint, scrub
from rlver.llm.faults import message_of, never_connected, retry_after, what
from rlver.llm.usage import Tokens, count

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter
    from openai import APIStatusError, AsyncOpenAI

T = TypeVar("T")
Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""

LONGEST_ANSWER = 50_000
"""Characters. A model that babbles on is a fault, and its text must not fill the next prompt."""

_SPACING = 0.0015
"""Seconds between two calls. Sent all at once, each waits until the others are made, and again for their answers; and
once in step, dialogues stay so for many turns."""

# An endpoint may not know these; what it refuses is left out from then on, and the log says so.
_OPTIONAL = ("response_format", "seed", "temperature", "top_p", "max_tokens")
_TRY_AGAIN = (408, 409, 425, 429)
_GIVE_UP = (401, 403, 404)


class Limits(Frozen):
    """How hard an endpoint is pressed, and how long it is waited for."""

    concurrency: int = Field(default=32, ge=1)
    """Calls that are under way at once."""
    per_minute: int | None = Field(default=None, ge=1)
    """Most calls a minute, as providers limit them; None is no limit."""
    attempts: int = Field(default=6, ge=1)
    """Most attempts at one call."""
    timeout: float = Field(default=90.0, gt=0)
    """Seconds that one attempt may take."""
    connect: float = Field(default=5.0, gt=0)
    """Seconds to connect."""
    longest_wait: float = Field(default=60.0, ge=0)
    """Longest pause before another attempt; an endpoint that asks for a longer one has failed."""
    patience: float = Field(default=20.0, gt=0)
    """Seconds of refused connections, without an answer in between, after which an endpoint is given up."""


class Completion(NamedTuple):
    """An answer."""

    text: str
    tokens: Tokens
    cached: bool
    key: str = ""
    """Its place in the cache; empty without one."""


class Tally:
    """What happened between us and an endpoint in this process."""

    def __init__(self) -> None:
        self.calls = self.cached = self.retries = self.failed = 0
        self.dropped: set[str] = set()
        """Sampling parameters that the endpoint refused."""


class _Again(Exception):
    """An attempt failed in a way that another may mend."""

    def __init__(self, why: str, wait: float | None = None, unreached: bool = False) -> None:
        super().__init__(why)
        self.wait, self.unreached = wait, unreached


_Call = Callable[[dict[str, Any]], Awaitable[T]]
"""Sends a request once and makes the result of the answer."""


class LLM:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        endpoint: see `parse_endpoint`.
        limits: one client, one limit; make one client per endpoint and share it.
        cache: answers to requests that were answered before come from here.

    Raises:
        RlverError: the key is missing.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits | None = None, cache: Cache | None = None) -> None:
        self.endpoint = endpoint
        self.limits = limits or Limits()
        self.cache = cache
        self.tally = Tally()
        self._key = endpoint.key()
        self._any = None if endpoint.base_url else AnyProvider(endpoint.model.partition("/")[0])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI
        self._slots: asyncio.Semaphore
        self._limiter: AsyncLimiter | None
        self._not_before = self._leaves = 0.0
        self._unreached_since: float | None = None
        self._jitter = random.Random()

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
        """The model's answer to a chat.

        Args:
            seed: passed on as a non-negative 31-bit number; part of the request, so of its place in the cache.
            schema: JSON schema of the answer, with a `title`; ignored by endpoints that know no schemas.

        Raises:
            CallFailed: no usable answer after all attempts; others may fare better.
            RlverError: the endpoint cannot be used at all (key, model, address, no connection).
        """
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": list(messages)}
        for name, value in (("temperature", temperature), ("top_p", top_p), ("max_tokens", max_tokens)):
            if value is not None:
                request[name] = value
        if seed is not None:
            request["seed"] = seed % 2**31
        if schema is not None:
            named = {"name": schema["title"], "schema": schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        key = request_key({**request, "base_url": self.endpoint.base_url}) if self.cache else ""
        if self.cache and (kept := self.cache.get(key)):
            self.tally.cached += 1
            return self._used(kept, key, cached=True)
        answer = await self._persist(request, self._chat)
        if self.cache:
            self.cache.put(key, answer)
        return self._used(answer, key, cached=False)

    async def post(self, url: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Post another request than a chat, under the same limits, deadline and retries; it is sent as it is.

        Args:
            url: absolute, or relative to the base address.
            read: makes the result of the decoded answer (text where it is no JSON). Its ValueError, TypeError,
                AttributeError and LookupError mean that this was no answer, which is then asked for again.

        Raises:
            CallFailed, RlverError: as `complete`.
        """

        async def call(request: dict[str, Any]) -> T:
            return read(await self._client.post(url, body=request, cast_to=object))

        return await self._persist(dict(body), call)

    def forget(self, answers: Sequence[Completion]) -> None:
        """Drop answers from the cache, so that they are asked for anew the next time."""
        for answer in answers:
            if self.cache and answer.key:
                self.cache.drop(answer.key)

    async def check(self) -> None:
        """Make sure that something answers at the address, quickly.

        Raises:
            RlverError: nothing does, or it refuses the key.
        """
        import openai

        if self._any:
            return  # any-llm has no cheap question to ask
        self._bind()
        why = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(min(8.0, self.limits.timeout)):
                    await self._client.models.list()
                return
            except openai.APIStatusError as error:
                if error.status_code in (401, 403):
                    raise self._unusable(error) from None
                return  # whoever answers with an error is there
            except (openai.OpenAIError, TimeoutError, ValueError, TypeError) as error:
                why = what(error)
            await asyncio.sleep(0.5)
        raise RlverError(f"{self.endpoint.spec}: nothing answers there ({self._clean(why)}); is the server running?")

    async def close(self) -> None:
        """Close connections. The client can be used again."""
        if self._loop is asyncio.get_running_loop() and not self._any:
            await self._client.close()
        self._loop = None

    def _used(self, answer: Mapping[str, Any], key: str, cached: bool) -> Completion:
        tokens = Tokens(calls=1, input=answer["input"], output=answer["output"])
        count(self.endpoint.spec, tokens)
        return Completion(answer["text"], tokens, cached, key)

    def _bind(self) -> None:
        """Connections belong to an event loop: make new ones in a new loop."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        import openai
        from aiolimiter import AsyncLimiter

        self._loop = loop
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=self.limits.concurrency + 8, max_keepalive_connections=self.limits.concurrency + 8
        )
        if not self._any:
            self._client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.endpoint.base_url,
                max_retries=0,  # the retries below are counted and bounded together
                http_client=openai.DefaultAioHttpClient(limits=limits),
                timeout=openai.Timeout(self.limits.timeout, connect=self.limits.connect),
            )
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        rate = self.limits.per_minute
        # Spread over the minute, with bursts of a second: no thundering herd at its start.
        self._limiter = AsyncLimiter(max(1.0, rate / 60), max(1.0, rate / 60) * 60 / rate) if rate else None
        self._not_before = self._leaves = 0.0
        self._unreached_since = None

    async def _persist(self, request: dict[str, Any], call: _Call[T]) -> T:
        """Ask until there is an answer, or until all attempts are used up."""
        self._bind()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(request, call)
            except _Again as error:
                # What cannot be reached is tried until patience ends, for it concerns all calls.
                if attempt >= self.limits.attempts * (5 if error.unreached else 1):
                    self.tally.failed += 1
                    why = self._clean(str(error))
                    raise CallFailed(f"{self.endpoint.spec}: {attempt} attempts failed (the last: {why}).") from None
                pause = self._pause(attempt, error)
            self.tally.retries += 1
            await asyncio.sleep(pause)

    def _pause(self, attempt: int, error: _Again) -> float:
        """Seconds before the next attempt: as the endpoint asks, else exponential; jitter keeps callers apart."""
        if error.wait is not None:
            return error.wait + self._jitter.uniform(0, 0.25)
        most = 2.0 if error.unreached else self.limits.longest_wait
        return min(most, 0.5 * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0)

    async def _attempt(self, request: dict[str, Any], call: _Call[T]) -> T:
        """One call. Raises _Again, CallFailed or RlverError."""
        import openai

        try:
            return await self._call(request, call)
        except openai.APIStatusError as error:
            raise self._judge(error, request) from None
        except openai.APIConnectionError as error:
            if never_connected(error):
                raise self._unreached(what(error)) from None
            raise _Again(f"no answer, or one that broke off ({what(error)})") from None
        except TimeoutError:
            raise _Again(f"no answer within {self.limits.timeout:g} s") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise _Again(f"not an answer of a model: {what(error)}") from None
        except Exception as error:
            if self._any is None or isinstance(error, (_Again, RlverError)):
                raise
            if is_fatal(error):
                raise RlverError(f"{self.endpoint.spec}: {self._clean(str(error))}.") from None
            if is_refusal(error):
                raise CallFailed(f"{self.endpoint.spec}: refused ({self._clean(str(error))}).") from None
            raise _Again(self._clean(str(error))) from None

    async def _call(self, request: dict[str, Any], call: _Call[T]) -> T:
        async with self._slots:
            if self._limiter:
                await self._limiter.acquire()
            now = time.monotonic()
            self._leaves = max(now, self._leaves + _SPACING, self._not_before)
            if self._leaves > now:
                await asyncio.sleep(self._leaves - now)
            self.tally.calls += 1
            async with asyncio.timeout(self.limits.timeout):
                answer = await call(request)
        self._unreached_since = None
        return answer

    async def _chat(self, request: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in request.items() if name not in self.tally.dropped}
        if "max_tokens" in request and "max_tokens" in self.tally.dropped:
            sent["max_completion_tokens"] = request["max_tokens"]
        response = await self._send(sent)
        self._unreached_since = None
        text = response["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise _Again("an empty answer")
        if len(text) > LONGEST_ANSWER:
            raise _Again(f"an answer of {len(text):,} characters")
        usage = response.get("usage") or {}
        return {
            "text": text,
            "input": int(usage.get("prompt_tokens") or 0),
            "output": int(usage.get("completion_tokens") or 0),
        }

    async def _send(self, request: dict[str, Any]) -> Any:
        if self._any:
            return await self._any.complete(request | {"model": request["model"].partition("/")[2]})
        # Not `chat.completions.create`: to send our plain request through its types doubles the CPU of a call. And the
        # whole address, for a relative one would be joined to the base again and again.
        return await self._client.post(f"{self._client.base_url}chat/completions", body=request, cast_to=object)

    def _judge(self, error: APIStatusError, request: Mapping[str, Any]) -> Exception:
        """What an error of the endpoint means for us."""
        status, message = error.status_code, self._clean(message_of(error))
        if status in _GIVE_UP or "insufficient_quota" in message or status == 402:
            return self._unusable(error)
        if status in _TRY_AGAIN or status >= 500:
            wait = retry_after(error)
            if wait is not None:
                if wait > self.limits.longest_wait:
                    return CallFailed(f"{self.endpoint.spec}: asks to wait {wait:.0f} s, longer than allowed.")
                self._not_before = max(self._not_before, time.monotonic() + wait)
            return _Again(f"status {status}: {message}", wait)
        for name in _OPTIONAL if "messages" in request else ():
            if name in request and name not in self.tally.dropped and name in message:
                self.tally.dropped.add(name)
                return _Again(f"does not know the parameter {name}", 0.0)
        return CallFailed(f"{self.endpoint.spec}: refused the request (status {status}: {message}).")

    def _unreached(self, why: str) -> Exception:
        now = time.monotonic()
        if self._unreached_since is None:
            self._unreached_since = now
        if now - self._unreached_since > self.limits.patience:
            return RlverError(
                f"{self.endpoint.spec}: no connection for {self.limits.patience:g} s ({self._clean(why)})."
            )
        return _Again(f"no connection: {why}", unreached=True)

    def _unusable(self, error: APIStatusError) -> RlverError:
        hints = {401: f"check the key in {self.endpoint.key_variable}", 404: "check model and address"}
        hint = hints.get(error.status_code, "the endpoint lets us do nothing")
        message = self._clean(message_of(error))
        return RlverError(f"{self.endpoint.spec}: {hint} (status {error.status_code}: {message}).")

    def _clean(self, text: str) -> str:
        """A short line without keys."""
        return " ".join(scrub(text, self._key).split())[:200].rstrip(".")
