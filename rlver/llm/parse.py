"""Reading an object from what a model wrote: strict about what it means, tolerant about how it is dressed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlver.core.errors import Unreadable

M = TypeVar("M", bound=BaseModel)

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_POINTS = re.compile(r"([+-]?)(\d{1,4}(?:\.\d+)?)(?:points?|pts?|分|点)?", re.IGNORECASE)
_FULL_WIDTH = str.maketrans("＋－−–０１２３４５６７８９", "+---0123456789")
_MOST_OBJECTS = 50


def read_object(text: str, form: type[M], foreign: Sequence[str] = ()) -> M:
    """The one object of this form in the text, whatever stands around it.

    Args:
        foreign: texts by somebody else that the model may have quoted. What stands in them is not the model's.

    Raises:
        Unreadable: there is none, or there are several that differ; the message says what is wrong.
    """
    text = _THINK.sub("", text)
    quoted = []
    for other in foreign:
        if "{" in other:
            quoted += objects(other)
            text = text.replace(other, " ")
    found: list[M] = []
    why = "no JSON object in it"
    for candidate in objects(text):
        if candidate in quoted:
            continue
        try:
            item = form.model_validate(_unwrapped(candidate, form))
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}"
            continue
        if item not in found:
            found.append(item)
    if len(found) == 1:
        return found[0]
    raise Unreadable(f"several JSON objects in it differ ({len(found)})" if found else why)


def objects(text: str) -> list[dict[str, Any]]:
    """All outermost JSON objects in a text; those that are cut off or beyond mending are left out."""
    found: list[dict[str, Any]] = []
    at, tries = text.find("{"), 0
    while at >= 0 and tries < _MOST_OBJECTS:
        tries += 1
        end = _end(text, at)
        item = _loads(text[at:end]) if end > 0 else None
        if item is not None:
            found.append(item)
        # Behind an object, or, where there was none, into what looked like one.
        at = text.find("{", at + 1 if item is None else end)
    return found


def points(value: object) -> float:
    """A signed number of points from a number or from text such as `+5`, `-10 points`, `5分`.

    Raises:
        ValueError: it is not exactly one finite number.
    """
    if isinstance(value, str):
        match = _POINTS.fullmatch("".join(value.translate(_FULL_WIDTH).split()))
        if match is None:
            raise ValueError("not one number of points")
        return float(match[1] + match[2])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e4:
        raise ValueError("not a number of points")
    return float(value)


def _unwrapped(item: dict[str, Any], form: type[BaseModel]) -> dict[str, Any]:
    """The inner object of `{"result": {...}}`."""
    inner = next(iter(item.values())) if len(item) == 1 else None
    return inner if isinstance(inner, dict) and not set(item) & set(form.model_fields) else item


def _end(text: str, start: int) -> int:
    """Where the object that begins at `start` ends; -1 if it is cut off. Brackets inside strings do not count."""
    depth, inside = 0, False
    for match in re.finditer(r'[{}"]|\\.', text[start:], re.DOTALL):
        char = match[0]
        if char == '"':
            inside = not inside
        elif not inside and char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return start + match.end()
    return -1


def _loads(text: str) -> dict[str, Any] | None:
    for mend in (str, _mended):
        try:
            item = json.loads(mend(text), strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(item, dict):
            return item
    return None


def _mended(text: str) -> str:
    """Outside of strings: plus signs, full-width marks and trailing commas as models write them."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        part = parts[i].translate(str.maketrans("：，｛｝＋", ":,{}+"))
        part = re.sub(r"//[^\n]*", "", part)
        part = re.sub(r":\s*\+(?=\d)", ": ", part)
        parts[i] = re.sub(r",(\s*[}\]])", r"\1", part)
    return "".join(parts)
