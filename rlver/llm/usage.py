"""What calls cost: tokens per model, and dollars by a price file that users can edit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import yaml

from rlver.core.data import read_text
from rlver.core.errors import RlverError
from rlver.core.profile import Frozen
from rlver.llm.endpoint import Endpoint, parse_endpoint


class Tokens(Frozen):
    """The number of answers, from the endpoint or from the cache, and their tokens."""

    calls: int = 0
    input: int = 0
    output: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(calls=self.calls + other.calls, input=self.input + other.input, output=self.output + other.output)


Usage = dict[str, Tokens]
"""Tokens per endpoint, keyed by its spec."""

_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def counting() -> Iterator[Usage]:
    """Count the tokens of all calls in the `with` block and in the tasks that it starts."""
    usage: Usage = {}
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)


def count(spec: str, tokens: Tokens) -> None:
    """Add tokens to the innermost `counting` block, if there is one."""
    usage = _current.get()
    if usage is not None:
        usage[spec] = usage.get(spec, Tokens()) + tokens


def add(total: Usage, more: Mapping[str, Tokens]) -> None:
    """Add `more` to `total` in place."""
    for spec, tokens in more.items():
        total[spec] = total.get(spec, Tokens()) + tokens


class Prices:
    """Dollars per million tokens, by the longest matching prefix of the model's name."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the given file, else the file that RLVER_PRICES names, else the package's own.

        Raises:
            RlverError: the file is missing or does not have lines of the form `model: [input, output]`.
        """
        named = path or (Path(os.environ["RLVER_PRICES"]) if os.environ.get("RLVER_PRICES") else None)
        self._prices: dict[str, tuple[float, float]] = {}
        try:
            text = named.read_text(encoding="utf-8") if named else read_text("rlver.llm", "data/prices.yaml")
            table = yaml.safe_load(text)
            for model, (per_input, per_output) in (table or {}).items():
                self._prices[str(model)] = float(per_input), float(per_output)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise RlverError(f"{named}: not a price file; write lines `model: [input, output]` ({why}).") from None

    def cost(self, usage: Mapping[str, Tokens]) -> float | None:
        """The cost in dollars; None if the price of one of the models is unknown."""
        total = 0.0
        for spec, tokens in usage.items():
            price = self._price(parse_endpoint(spec))
            if price is None:
                return None
            total += (tokens.input * price[0] + tokens.output * price[1]) / 1e6
        return total

    def _price(self, endpoint: Endpoint) -> tuple[float, float] | None:
        names = (endpoint.model, endpoint.model.rpartition("/")[2])
        matching = [name for name in self._prices if any(model.startswith(name) for model in names)]
        if matching:
            return self._prices[max(matching, key=len)]
        return (0.0, 0.0) if endpoint.local else None
