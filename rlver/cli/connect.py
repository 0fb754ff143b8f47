"""Options for endpoints that several commands share, and the clients made from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from rlver.llm import LLM, Limits, parse_endpoint
from rlver.llm.answer_cache import Cache

EndpointPanel = "Models behind endpoints (API keys are read from the environment)"

ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, help="Concurrent calls to an endpoint.", rich_help_panel=EndpointPanel)
]
RateOption = Annotated[
    int | None,
    typer.Option(
        "--per-minute", min=1, help="Limit of calls to an endpoint per minute.", rich_help_panel=EndpointPanel
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=0.1, help="Seconds until an answer counts as failed.", rich_help_panel=EndpointPanel),
]
AttemptsOption = Annotated[
    int, typer.Option("--attempts", min=1, help="Attempts per call.", rich_help_panel=EndpointPanel)
]
CACHE_HELP = "SQLite file that keeps all answers, so that none is paid for twice. Several runs may share it."
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help=f"{CACHE_HELP}  [default: none]", rich_help_panel=EndpointPanel)
]
PricesOption = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        help="YAML file of `model: [input, output]` in dollars per million tokens.  [default: the file that "
        "RLVER_PRICES names, or a built-in one]",
        rich_help_panel=EndpointPanel,
    ),
]


class Connections:
    """One client per endpoint, however many options name it."""

    def __init__(self, limits: Limits, cache: Path | None) -> None:
        self._limits = limits
        self._path = cache
        self._cache: Cache | None = None
        self._clients: dict[str, LLM] = {}

    def connect(self, spec: str) -> LLM:
        """The client of a spec."""
        endpoint = parse_endpoint(spec)
        if endpoint.spec not in self._clients:
            if self._path and self._cache is None:
                self._cache = Cache(self._path)
            self._clients[endpoint.spec] = LLM(endpoint, self._limits, self._cache)
        return self._clients[endpoint.spec]

    def check(self) -> None:
        """Make sure that all endpoints answer before long work begins. Raises RlverError for one that does not."""

        async def each(clients: Iterable[LLM]) -> None:
            for client in clients:
                try:
                    await client.check()
                finally:
                    await client.close()

        if self._clients:
            asyncio.run(each(self._clients.values()))

    @property
    def troubles(self) -> str:
        """Retries, failures and unsupported parameters in one line; empty if there were none."""
        parts = []
        for spec, client in self._clients.items():
            tally = client.tally
            if tally.retries or tally.failed:
                parts.append(f"{spec}: {tally.retries} retries, {tally.failed} calls failed")
            if tally.dropped:
                parts.append(f"{spec}: does not support {', '.join(sorted(tally.dropped))}")
        return "; ".join(parts)
