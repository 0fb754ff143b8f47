"""Access to the text files that ship with the package: read once, hashed so that results can name them."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import yaml


@cache
def read_text(package: str, name: str) -> str:
    """The text of a data file, e.g. `read_text("rlver.users.embedded", "data/speech.en.yaml")`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def read_yaml(package: str, name: str) -> Any:
    """A YAML data file. The object is shared: do not change it."""
    return yaml.load(read_text(package, name), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def digest(*texts: str) -> str:
    """Eight hex digits that stand for these texts."""
    return sha256("\0".join(texts).encode()).hexdigest()[:8]
