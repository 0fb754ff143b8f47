"""Which operation makes two runs differ: what every operation finds is written down, in whatever thread it runs."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlver.inference.cores import Cores

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Operation:
    """One call of an operation."""

    call: str
    """Its name, and the shapes of what it took and found."""
    hashes: tuple[int, ...]
    """Of the numbers that it found."""
    file: str
    line: int
    """Of ours, from which it was called. A backward pass is called as a whole."""
    thread: str

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        place = f"{Path(self.file).relative_to(ROOT)}:{self.line}" if self.file else "nowhere"
        return f"{self.call}, called in {self.thread} at {place}: {source}"


def first_difference(one: Callable[[], Any], other: Callable[[], Any]) -> str:
    """The first operation of `one` whose results never come up in `other`, in a sentence.

    In `other`, the same results may come up in another order, in other threads, and from other operations. `one` should
    have a single thread: only then the first that differs is the cause.
    """
    with watched() as found:
        one()
    with watched() as others:
        other()
    known = {number for operation in others for number in operation.hashes}
    for count, operation in enumerate(found, 1):
        if not known.issuperset(operation.hashes):
            return f"operation {count} of {len(found)} is the first that finds something else: {operation}"
    return f"watched once more, all {len(found)} operations found the same"


@contextmanager
def watched() -> Iterator[list[Operation]]:
    """The operations inside, those that `Cores` leaves to other threads included."""
    found: list[Operation] = []
    unwatched = Cores.map

    def everywhere(self: Cores, work: Callable[[Any], Any], parts: Any) -> Iterator[Any]:
        def inside(part: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return work(part)
            with _Watch(found):
                return work(part)

        return unwatched(self, inside, parts)

    with patch.object(Cores, "map", everywhere), _Watch(found):
        yield found


class _Watch(TorchDispatchMode):
    """Writes down the operations of one thread."""

    def __init__(self, found: list[Operation]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        found = _tensors(results)
        if found and _says_something(function):
            call = f"{function}({_shapes(_tensors((args, kwargs)))}) -> {_shapes(found)}"
            hashes = tuple(map(_hash, found))
            self.found.append(Operation(call, hashes, *_caller(), threading.current_thread().name))
        return results


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in tensors)


def _says_something(function: Any) -> bool:
    """Whether the results are new numbers: neither uninitialised memory nor a view.

    What is changed in place is new, except while sampling, when passes side by side write to one cache.
    """
    schema = function._schema
    shared = [result.alias_info for result in schema.returns if result.alias_info]
    if any(name in schema.name for name in ("empty", "set_")):
        return False
    return not shared or (shared[0].is_write and not torch.is_inference_mode_enabled())


def _hash(tensor: Tensor) -> int:
    numbers = tensor.detach().clone(memory_format=torch.contiguous_format).flatten()
    return hash(numbers.view(torch.uint8).numpy().tobytes())


def _caller() -> tuple[str, int]:
    """The innermost line of the package or of its tests."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and "site-packages" not in file and file != __file__:
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0
