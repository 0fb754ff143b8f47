"""Data files that ship with the package: read once, and hashed so that results can name their version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import yaml

_COMMENT = re.compile(r"\A<!--.*?-->\s*", re.DOTALL)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


@cache
def read_text(package: str, name: str) -> str:
    """The text of a data file, for example `read_text("rlver.users.embedded", "data/speech.en.yaml")`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def read_yaml(package: str, name: str) -> Any:
    """The content of a YAML data file. All callers share the object, so do not change it."""
    return yaml.load(read_text(package, name), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def fill_prompt(package: str, name: str, slots: Mapping[str, str]) -> str:
    """A prompt in a Markdown file with its `{{slots}}` filled. Slots inside the filled-in texts stay as they are."""
    text = _COMMENT.sub("", read_text(package, name)).strip()
    return _SLOT.sub(lambda match: slots[match[1]], text)


def digest(*texts: str) -> str:
    """Eight hexadecimal digits that identify these texts."""
    return sha256("\0".join(texts).encode()).hexdigest()[:8]
