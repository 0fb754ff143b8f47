"""The web application: chat completions, models and sessions in the form of the OpenAI API."""

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

from rlver.core.errors import CallFailed, RlverError
from rlver.serve.pieces import Piece
from rlver.serve.sessions import Conflict, Session, Sessions

if TYPE_CHECKING:
    from rlver.serve.generate import Generator  # torch, which simulated users do without

SENTIENT = "sentient"
"""Name of the model that is a simulated user."""
LARGEST_BODY = 2_000_000
"""Bytes of a request."""


class ChatMessage(BaseModel):
    """A message of a request; content may come in parts."""

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
    """What we read of a request; other fields are let pass, as clients send many."""

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
    """For a simulated user: whom a new conversation is with."""

    @property
    def said(self) -> list[tuple[str, str]]:
        """The messages as (role, text)."""
        return [(message.role, message.text) for message in self.messages]


class SessionRequest(BaseModel):
    """What a new session may ask for."""

    model_config = ConfigDict(extra="forbid")

    profile: str | None = None
    seed: int | None = Field(default=None, ge=0)


def make_app(sessions: Sessions | None, policies: Mapping[str, Generator], token: str = "") -> Starlette:
    """The application.

    Args:
        sessions: conversations with a sentient agent, offered as the model "sentient"; None offers none.
        policies: trained policies by the name of the model.
        token: bearer token that every request must carry; empty asks for none.
    """
    names = [*([SENTIENT] if sessions else []), *policies]

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in names]})

    async def chat(request: Request) -> Response:
        asked = ChatRequest.model_validate(await _body(request))
        asked.session = asked.session or request.headers.get("x-session")
        if sessions and asked.model == SENTIENT:
            return await _converse(sessions, asked)
        if asked.model in policies:
            return await _generate(policies[asked.model], asked)
        raise Conflict(f"there is no model {asked.model[:60]!r} here; there are {', '.join(names)}.")

    async def begin(request: Request) -> Response:
        wanted = SessionRequest.model_validate(await _body(request) if await request.body() else {})
        session = await _there(sessions).begin(wanted.profile, wanted.seed)
        return JSONResponse(session.state() | {"opening": session.words}, 201)

    async def look(request: Request) -> Response:
        there = _there(sessions)
        return JSONResponse(there.transcript(there.get(request.path_params["name"])))

    async def drop(request: Request) -> Response:
        _there(sessions).drop(request.path_params["name"])
        return Response(status_code=204)

    def guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guard(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                return _error(401, "this server asks for a bearer token.")
            try:
                return await handle(request)
            except (ValidationError, ValueError) as error:
                return _error(400, _first(error))
            except Conflict as error:
                return _error(409 if "ended" in str(error) else 404, str(error))
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
            Route("/v1/sessions/{name}", guarded(look)),
            Route("/v1/sessions/{name}", guarded(drop), methods=["DELETE"]),
        ]
    )


async def _converse(sessions: Sessions, asked: ChatRequest) -> Response:
    """A turn with a simulated user: the client's last message is the reply, the answer what the user says."""
    talk = [(role, text) for role, text in asked.said if role != "system"]
    if not talk or talk[-1][0] != "user":
        raise ValueError("the last message must be of the role user")
    session: Session | None
    if asked.session:
        session = sessions.get(asked.session)
        await sessions.reply(session, talk[-1][1])
    elif session := sessions.find(talk[:-1]) if len(talk) > 1 else None:
        await sessions.reply(session, talk[-1][1])
    elif len(talk) == 1:
        # Whoever knows no sessions greets first; the greeting is not judged.
        session = await sessions.begin(asked.profile, asked.seed)
    else:
        raise Conflict("this conversation was not held here; begin with one message, or name a session.")
    state = session.state()
    ended = session.dialogue.turns and session.dialogue.turns[-1].reaction is None
    words = "" if ended else session.words
    sessions.remember([*talk, ("assistant", words)], session)
    frame = _frame(SENTIENT)
    if asked.stream:
        pieces = [Piece(words, False, 0, None), Piece("", False, 0, "stop")]
        return StreamingResponse(_events(frame, iter(pieces), state), media_type="text/event-stream")
    return JSONResponse(frame | _whole(words, "", "stop", 0, 0) | {"rlver": state})


async def _generate(generator: Generator, asked: ChatRequest) -> Response:
    """A reply of a trained policy."""
    policy = generator.policy
    ids = await run_in_threadpool(generator.prompt, asked.said)
    most = min(asked.max_completion_tokens or asked.max_tokens or policy.max_tokens, 4096)
    temperature = policy.temperature if asked.temperature is None else asked.temperature
    seed = uuid.uuid4().int % 2**31 if asked.seed is None else asked.seed % 2**31
    pieces = generator.stream(ids, most, temperature, seed)
    frame = _frame(asked.model)
    if asked.stream:
        return StreamingResponse(_events(frame, pieces, None), media_type="text/event-stream")
    told = await run_in_threadpool(list, pieces)
    reply = "".join(piece.text for piece in told if not piece.thinking)
    thought = "".join(piece.text for piece in told if piece.thinking)
    return JSONResponse(frame | _whole(reply, thought, told[-1].finish or "stop", len(ids), told[-1].tokens))


def _events(frame: dict[str, Any], pieces: Iterator[Piece], state: dict[str, Any] | None) -> Iterator[str]:
    """Server-sent events of a streamed answer."""
    role: dict[str, str] = {"role": "assistant"}
    for piece in pieces:
        delta = role | ({"reasoning_content" if piece.thinking else "content": piece.text} if piece.text else {})
        role = {}
        choice = {"index": 0, "delta": delta, "finish_reason": piece.finish}
        side = {"rlver": state} if state and piece.finish else {}
        chunk = frame | {"object": "chat.completion.chunk", "choices": [choice]} | side
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _frame(model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
    }


def _whole(reply: str, thought: str, finish: str, given: int, made: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply} | ({"reasoning_content": thought} if thought else {})
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rlver"}


def _there(sessions: Sessions | None) -> Sessions:
    if sessions is None:
        raise Conflict("no simulated user is served here.")
    return sessions


async def _body(request: Request) -> Any:
    """The JSON of a request. Raises ValueError if it is too large or none."""
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


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
    return f"{error}."
