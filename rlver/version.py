"""The version that stands in every result."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The installed version; "uninstalled" where the source tree runs without installation."""
    try:
        return installed_version("rlver")
    except PackageNotFoundError:
        return "uninstalled"
