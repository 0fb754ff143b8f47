"""Structured answers: a JSON schema for endpoints that support one, and a tolerant reader for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from rlver.core.errors import Unreadable
from rlver.core.seeds import derive
from rlver.llm.client import LLM, Message
from rlver.llm.parse import read_object

M = TypeVar("M", bound=BaseModel)

_RETRY_NOTE = {
    "en": "Your last answer could not be used ({why}). Answer again, with the JSON object alone.",
    "zh": "你上次的回答无法使用（{why}）。请重新回答，只输出那个 JSON 对象。",
}


async def ask(
    llm: LLM,
    messages: Sequence[Message],
    form: type[M],
    *,
    language: str,
    temperature: float | None,
    max_tokens: int | None,
    seed: int,
    foreign: Sequence[str] = (),
    check: Callable[[M], str] | None = None,
    attempts: int = 4,
) -> M:
    """Ask a model for an object, again if the answer holds none that can be used.

    Args:
        form: the type of the object; its name and fields become the JSON schema.
        seed: of the first request; later ones derive theirs from it.
        foreign: see `read_object`.
        check: returns what is wrong with an object of the right form, or "" if nothing is.
        attempts: largest number of answers to ask for.

    Raises:
        Unreadable: none of the answers could be used.
        CallFailed, RlverError: see `LLM.complete`.
    """
    why, unusable = "", []
    for attempt in range(attempts):
        # The note describes the fault in our own words: the answer itself may hold instructions by somebody else.
        note = [{"role": "user", "content": _RETRY_NOTE[language].format(why=why)}] if attempt else []
        answer = await llm.complete(
            [*messages, *note],
            temperature=temperature,
            max_tokens=max_tokens,
            seed=derive(seed, attempt) if attempt else seed,
            schema=schema_of(form),
        )
        unusable.append(answer)
        try:
            item = read_object(answer.text, form, foreign)
        except Unreadable as error:
            why = str(error)
            continue
        if check is None or not (why := check(item)):
            return item
    llm.forget(unusable)
    raise Unreadable(f"{llm.endpoint.spec}: {attempts} answers in a row could not be used (the last: {why}).")


@cache
def schema_of(form: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a form as endpoints accept it: every field required, no other fields, no descriptions."""
    schema = form.model_json_schema()
    return {"title": form.__name__, **_strict(schema, schema.get("$defs", {}))}


def _strict(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema with its references resolved and without the keywords that endpoints do not support."""
    if "$ref" in part:
        part = definitions[part["$ref"].rpartition("/")[2]]
    strict: dict[str, Any] = {key: part[key] for key in ("type", "enum", "const") if key in part}
    if "items" in part:
        strict["items"] = _strict(part["items"], definitions)
    if "properties" in part:
        strict["properties"] = {name: _strict(field, definitions) for name, field in part["properties"].items()}
        strict |= {"required": list(part["properties"]), "additionalProperties": False}
    return strict
