"""Reads objects from the text of a model: strict about their content, tolerant of the text around them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlver.core.errors import Unreadable, first_problem

M = TypeVar("M", bound=BaseModel)

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_POINTS = re.compile(r"([+-]?)(\d{1,4}(?:\.\d+)?)(?:points?|pts?|分|点)?", re.IGNORECASE)
_FULL_WIDTH = str.maketrans("＋－−–０１２３４５６７８９", "+---0123456789")
_MAX_CANDIDATES = 50


def read_object(text: str, form: type[M], foreign: Sequence[str] = ()) -> M:
    """Return the one object of this form in the text, whatever surrounds it.

    Args:
        foreign: texts by others that the model may have quoted. Objects in them are not the model's own.

    Raises:
        Unreadable: the text holds no such object, or several that differ; the message says what is wrong.
    """
    text = _THINK.sub("", text)
    quoted: list[dict[str, Any]] = []
    for foreign_text in foreign:
        if "{" in foreign_text:
            quoted += find_objects(foreign_text)
            text = text.replace(foreign_text, " ")
    items: list[M] = []
    why = "no JSON object in it"
    for candidate in find_objects(text):
        if candidate in quoted:
            continue
        try:
            item = form.model_validate(_unwrapped(candidate, form))
        except ValidationError as error:
            why = first_problem(error, "the object")
            continue
        if item not in items:
            items.append(item)
    if len(items) == 1:
        return items[0]
    raise Unreadable(f"several JSON objects in it differ ({len(items)})" if items else why)


def find_objects(text: str) -> list[dict[str, Any]]:
    """All outermost JSON objects in a text, without those that are cut off or beyond repair."""
    results: list[dict[str, Any]] = []
    at, tries = text.find("{"), 0
    while at >= 0 and tries < _MAX_CANDIDATES:
        tries += 1
        end = _end_of_object(text, at)
        item = _parse_object(text[at:end]) if end > 0 else None
        if item is not None:
            results.append(item)
        # Continue after the object, or, if this was none, inside what looked like one.
        at = text.find("{", at + 1 if item is None else end)
    return results


def points(value: object) -> float:
    """Read a signed number of points from a number or from text such as `+5`, `-10 points` or `5分`.

    Raises:
        ValueError: the value is not exactly one finite number.
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
    """The inner object of `{"result": {...}}`; any other object as it is."""
    inner = next(iter(item.values())) if len(item) == 1 else None
    return inner if isinstance(inner, dict) and not set(item) & set(form.model_fields) else item


def _end_of_object(text: str, start: int) -> int:
    """Index after the object that begins at `start`; -1 if it is cut off. Braces inside strings do not count."""
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


def _parse_object(text: str) -> dict[str, Any] | None:
    for prepare in (str, _repaired):
        try:
            item = json.loads(prepare(text), strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(item, dict):
            return item
    return None


def _repaired(text: str) -> str:
    """The text without what models write and JSON forbids: plus signs, full-width punctuation, trailing commas and
    comments. Strings stay as they are."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        part = parts[i].translate(str.maketrans("：，｛｝＋", ":,{}+"))
        part = re.sub(r"//[^\n]*", "", part)
        part = re.sub(r":\s*\+(?=\d)", ": ", part)
        parts[i] = re.sub(r",(\s*[}\]])", r"\1", part)
    return "".join(parts)
