"""The web application: chat completions and models as in the OpenAI API, and sessions."""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlver.core.errors import CallFailed, RlverError, first_problem
from rlver.serve.sessions import Conflict, NotFound, Session, Sessions
from rlver.serve.streaming import Delta

if TYPE_CHECKING:
    from rlver.serve.completions import Generator  # imports torch, which simulated users do without

SENTIENT = "sentient"
"""Model name of the simulated user."""
LARGEST_BODY = 2_000_000
"""Largest size of a request in bytes."""
MOST_TOKENS = 4096
"""Largest number of tokens of an answer."""


class ChatMessage(BaseModel):
    """A message of a request. The content may come in parts."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = ""

    @property
    def text(self) -> str:
        """The content as text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatRequest(BaseModel):
    """The fields of a request that the server uses. Others are ignored, because clients send many."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    session: str | None = None
    """For a simulated user: the session that the last message belongs to."""
    profile: str | None = None
    """For a simulated user: the profile of a new session."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The messages as (role, text) pairs."""
        return [(message.role, message.text) for message in self.messages]


class SessionRequest(BaseModel):
    """The body of a request for a new session."""

    model_config = ConfigDict(extra="forbid")

    profile: str | None = None
    seed: int | None = Field(default=None, ge=0)


def make_app(sessions: Sessions | None, policies: Mapping[str, Generator], token: str = "") -> Starlette:
    """The application.

    Args:
        sessions: those of the simulated user, which is offered as the model "sentient"; None offers none.
        policies: trained policies by model name.
        token: bearer token that every request must carry; empty if none is needed.
    """
    names = [*([SENTIENT] if sessions else []), *policies]

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in names]})

    async def chat(request: Request) -> Response:
        body = ChatRequest.model_validate(await _read_json(request))
        body.session = body.session or request.headers.get("x-session")
        if sessions and body.model == SENTIENT:
            return await _converse(sessions, body)
        if body.model in policies:
            return await _generate(policies[body.model], body)
        raise NotFound(f"there is no model {body.model[:60]!r} here; the models are {', '.join(names)}.")

    async def begin(request: Request) -> Response:
        body = SessionRequest.model_validate(await _read_json(request) if await request.body() else {})
        session = await _require(sessions).begin(body.profile, body.seed)
        return JSONResponse(session.state() | {"opening": session.utterance}, 201)

    async def show(request: Request) -> Response:
        served = _require(sessions)
        return JSONResponse(served.transcript(served.get(request.path_params["name"])))

    async def drop(request: Request) -> Response:
        _require(sessions).drop(request.path_params["name"])
        return Response(status_code=204)

    def guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A handler that checks the token first and turns exceptions into error responses."""

        async def guard(request: Request) -> Response:
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if token and not hmac.compare_digest(bearer.encode(), token.encode()):
                return _error(401, "this server needs a bearer token.")
            try:
                return await handle(request)
            except (ValidationError, ValueError) as error:
                return _error(400, _describe(error))
            except NotFound as error:
                return _error(404, str(error))
            except Conflict as error:
                return _error(409, str(error))
            except CallFailed as error:
                return _error(502, str(error))
            except RlverError as error:
                return _error(503, str(error))

        return guard

    return Starlette(
        routes=[
            Route("/v1/models", guarded(models)),
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
            Route("/v1/sessions", guarded(begin), methods=["POST"]),
            Route("/v1/sessions/{name}", guarded(show)),
            Route("/v1/sessions/{name}", guarded(drop), methods=["DELETE"]),
        ]
    )


async def _converse(sessions: Sessions, body: ChatRequest) -> Response:
    """A turn with a simulated user: the client's last message is the reply, and the answer is the user's utterance."""
    messages = [(role, text) for role, text in body.pairs if role != "system"]
    if not messages or messages[-1][0] != "user":
        raise ValueError("the last message must have the role user")
    session: Session | None
    if body.session:
        session = sessions.get(body.session)
        await sessions.reply(session, messages[-1][1])
    elif session := sessions.find(messages[:-1]) if len(messages) > 1 else None:
        await sessions.reply(session, messages[-1][1])
    elif len(messages) == 1:
        # A client that does not use sessions begins with a greeting, which is not judged.
        session = await sessions.begin(body.profile, body.seed)
    else:
        raise NotFound("this dialogue was not held here; begin with one message, or name a session.")
    state = session.state()
    unjudged = session.dialogue.turns and session.dialogue.turns[-1].reaction is None
    utterance = "" if unjudged else session.utterance
    sessions.remember([*messages, ("assistant", utterance)], session)
    frame = _frame(SENTIENT)
    if body.stream:
        deltas = [Delta(utterance, False, 0, None), Delta("", False, 0, "stop")]
        return StreamingResponse(_events(frame, iter(deltas), state), media_type="text/event-stream")
    return JSONResponse(frame | _completion(utterance, "", "stop", 0, 0) | {"rlver": state})


async def _generate(generator: Generator, body: ChatRequest) -> Response:
    """A reply of a trained policy."""
    policy = generator.policy
    ids = await run_in_threadpool(generator.prompt, body.pairs)
    max_tokens = min(body.max_completion_tokens or body.max_tokens or policy.max_tokens, MOST_TOKENS)
    temperature = policy.temperature if body.temperature is None else body.temperature
    seed = uuid.uuid4().int % 2**31 if body.seed is None else body.seed % 2**31
    stream = generator.stream(ids, max_tokens, temperature, seed)
    frame = _frame(body.model)
    if body.stream:
        return StreamingResponse(_events(frame, stream, None), media_type="text/event-stream")
    deltas = await run_in_threadpool(list, stream)
    reply = "".join(delta.text for delta in deltas if not delta.thinking)
    thought = "".join(delta.text for delta in deltas if delta.thinking)
    last = deltas[-1]
    return JSONResponse(frame | _completion(reply, thought, last.finish or "stop", len(ids), last.tokens))


def _events(frame: dict[str, Any], deltas: Iterator[Delta], state: dict[str, Any] | None) -> Iterator[str]:
    """Server-sent events of a streamed answer. The last one carries the state of the session."""
    role: dict[str, str] = {"role": "assistant"}
    for delta in deltas:
        field = "reasoning_content" if delta.thinking else "content"
        content = role | ({field: delta.text} if delta.text else {})
        role = {}
        choice = {"index": 0, "delta": content, "finish_reason": delta.finish}
        side = {"rlver": state} if state and delta.finish else {}
        chunk = frame | {"object": "chat.completion.chunk", "choices": [choice]} | side
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _frame(model: str) -> dict[str, Any]:
    """The fields that every answer has."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
    }


def _completion(reply: str, thought: str, finish: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    """The other fields of an answer that is not streamed."""
    message = {"role": "assistant", "content": reply} | ({"reasoning_content": thought} if thought else {})
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rlver"}


def _require(sessions: Sessions | None) -> Sessions:
    """The sessions. Raises NotFound if no simulated user is served."""
    if sessions is None:
        raise NotFound("no simulated user is served here.")
    return sessions


async def _read_json(request: Request) -> Any:
    """The JSON body of a request. Raises ValueError if it is too large or not JSON."""
    if int(request.headers.get("content-length") or 0) > LARGEST_BODY:
        raise ValueError(f"the request is larger than {LARGEST_BODY:,} bytes")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise ValueError(f"the request is larger than {LARGEST_BODY:,} bytes")
    return json.loads(body)


def _error(status: int, message: str) -> Response:
    kind = "authentication_error" if status == 401 else "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def _describe(error: Exception) -> str:
    """One sentence about an error in a request."""
    return f"{first_problem(error) if isinstance(error, ValidationError) else error}."
