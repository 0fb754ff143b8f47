"""Specs of models behind endpoints (`openai:MODEL@BASE_URL`), and the environment variables of their keys."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from rlver.core.errors import RlverError

DEFAULT_URL = "https://api.openai.com/v1"
_KEY_VARIABLES = {
    "api.openai.com": "OPENAI_API_KEY",
    "api.deepseek.com": "DEEPSEEK_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
    "api.mistral.ai": "MISTRAL_API_KEY",
    "api.together.xyz": "TOGETHER_API_KEY",
    "api.groq.com": "GROQ_API_KEY",
}
OTHER_KEY_VARIABLE = "RLVER_API_KEY"
"""Variable of every host that is not listed above, so that no key goes to a host that it was not meant for."""

PREFIX = "openai:"
ANY_PREFIX = "any:"
_TOKEN = re.compile(r"\b(sk|pk|key|tok)-[\w*-]{6,}|(?i:bearer)\s+\S{6,}")


class Endpoint(NamedTuple):
    """A model and its address. It holds no key."""

    model: str
    base_url: str
    """Empty for a model that any-llm reaches."""

    @property
    def spec(self) -> str:
        """The spec, as users type it."""
        if not self.base_url:
            return f"{ANY_PREFIX}{self.model}"
        return f"{PREFIX}{self.model}" + (f"@{self.base_url}" if self.base_url != DEFAULT_URL else "")

    @property
    def key_variable(self) -> str:
        """Name of the environment variable that holds the key."""
        return _KEY_VARIABLES.get(urlsplit(self.base_url).hostname or "", OTHER_KEY_VARIABLE)

    @property
    def local(self) -> bool:
        """Whether the model runs on this machine, where calls are free."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def key(self) -> str:
        """The key from the environment, or a placeholder for hosts that may not need one.

        Raises:
            RlverError: the variable is empty and the host is known to need a key.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.key_variable != OTHER_KEY_VARIABLE:
            raise RlverError(f"{self.spec}: set the environment variable {self.key_variable} to your key.")
        return key or "none"


def is_endpoint(spec: str) -> bool:
    """Whether a spec names a model behind an endpoint."""
    return spec.startswith((PREFIX, ANY_PREFIX))


def parse_endpoint(spec: str) -> Endpoint:
    """Parse `openai:MODEL`, `openai:MODEL@BASE_URL` or `any:PROVIDER/MODEL`.

    Raises:
        RlverError: the model is missing, the address is not an http address, or it carries a password or a query,
            which would end up in logs.
    """
    if spec.startswith(ANY_PREFIX):
        provider, _, model = spec.removeprefix(ANY_PREFIX).partition("/")
        if not provider or not model:
            raise RlverError(f"{spec}: write any:PROVIDER/MODEL, for example any:anthropic/claude-sonnet-4-5.")
        return Endpoint(f"{provider}/{model}", "")
    model, at, url = spec.removeprefix(PREFIX).rpartition("@")
    if not at:
        model, url = url, DEFAULT_URL
    parts = urlsplit(url)
    if not model or parts.scheme not in ("http", "https") or not parts.hostname:
        raise RlverError(
            f"{scrub(spec)}: write openai:MODEL@BASE_URL, for example openai:qwen3@http://localhost:8000/v1."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RlverError(
            f"openai:{model}@...{parts.hostname}: the address must not hold a password or a query, which logs would "
            f"show; put the key into the environment variable {Endpoint(model, url).key_variable}."
        )
    return Endpoint(model, url.rstrip("/"))


def scrub(text: str, *secrets: str) -> str:
    """The text with keys replaced: the given secrets, and whatever looks like a key."""
    for secret in secrets:
        if len(secret) > 4:
            text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


def one_line(text: str, key: str) -> str:
    """The text as one short line without keys, for an error message."""
    return " ".join(scrub(text, key).split())[:200].rstrip(".")
