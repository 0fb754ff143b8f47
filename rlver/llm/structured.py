"""Asking a model for an object: by JSON schema where the endpoint knows schemas, by reading its text anyway."""

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

_AGAIN = {
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
    """Ask until the answer holds one object of this form, a bounded number of times.

    Args:
        foreign: see `read_object`.
        check: says what is wrong with an object that has the right form; empty if nothing is.

    Raises:
        Unreadable: none of the answers could be used.
        CallFailed, RlverError: see `LLM.complete`.
    """
    why, useless = "", []
    for attempt in range(attempts):
        # What was wrong is said in our words alone: the answer itself may hold somebody's instructions.
        note = [{"role": "user", "content": _AGAIN[language].format(why=why)}] if attempt else []
        answer = await llm.complete(
            [*messages, *note],
            temperature=temperature,
            max_tokens=max_tokens,
            seed=derive(seed, attempt) if attempt else seed,
            schema=schema_of(form),
        )
        useless.append(answer)
        try:
            found = read_object(answer.text, form, foreign)
        except Unreadable as error:
            why = str(error)
            continue
        if check is None or not (why := check(found)):
            return found
    llm.forget(useless)
    raise Unreadable(f"{llm.endpoint.spec}: {attempts} answers in a row could not be used (the last: {why}).")


@cache
def schema_of(form: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a form as endpoints want it: every field required, nothing else allowed, no notes."""
    schema = form.model_json_schema()
    return {"title": form.__name__, **_strict(schema, schema.get("$defs", {}))}


def _strict(part: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema with references put in, and without what endpoints do not know."""
    if "$ref" in part:
        part = known[part["$ref"].rpartition("/")[2]]
    kept: dict[str, Any] = {key: part[key] for key in ("type", "enum", "const") if key in part}
    if "items" in part:
        kept["items"] = _strict(part["items"], known)
    if "properties" in part:
        kept["properties"] = {name: _strict(field, known) for name, field in part["properties"].items()}
        kept |= {"required": list(part["properties"]), "additionalProperties": False}
    return kept
