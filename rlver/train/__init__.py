"""Training. The package is also the function of the Python API: `rlver.train(policy="tiny", out="runs/mine")`.

`rlver.api.train` documents its arguments.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """`rlver.train` names both this package and a function, so calling the package calls the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """See `rlver.api.train`."""
        return import_module("rlver.api").train(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
