"""Arrays that are arguments of task after task: they are copied into shared memory once, not for each task.

Workers map them so that what a task writes to one is seen by nobody else: an array is the task's own, just as when it
travels with the task. An array that its owner changes meanwhile is seen as it was.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import OutOfSharedMemory
from .stored import Stored, open_stored

LARGE = 1 << 20
"""Bytes from which on this is worth it."""


class Repeated:
    """The large arrays of tasks so far, as long as they live; and where those lie that were seen more than once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Any], Stored | None]] = {}
        self._all: weakref.WeakSet[Stored] = weakref.WeakSet()
        self._used: list[Stored] = []

    def reduced(self, obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """What pickle makes of an object. None: as ever."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(obj) is not numpy.ndarray or obj.nbytes < LARGE:
            return None
        if obj.dtype.hasobject or not obj.flags.forc:
            return None
        stored = self._stored(obj)
        if stored is None:
            return None
        self._used.append(stored)
        order = "C" if obj.flags.c_contiguous else "F"
        return _mapped, (stored.name, obj.dtype, obj.shape, order)

    def take_used(self) -> list[Stored]:
        """What was used since the last time: a task must keep it until it is done."""
        used, self._used = self._used, []
        return used

    def _stored(self, array: Any) -> Stored | None:
        reference: Any
        key, seen = id(array), self._seen
        reference, stored = seen.get(key, (None, None))
        if reference is None or reference() is not array:
            seen[key] = weakref.ref(array, lambda dead: _forget(seen, key, dead)), None
            return None
        if stored is None:
            try:
                stored = Stored(array.reshape(-1, order="A").view("u1").data)
            except OutOfSharedMemory:  # then it must go with each task, when there is room
                return None
            self._all.add(stored)
            seen[key] = reference, stored
        return stored

    def close(self) -> None:
        """No task needs them any more."""
        self._seen.clear()
        self._used.clear()
        for stored in list(self._all):
            stored.close()


def _forget(seen: dict[int, tuple[weakref.ref[Any], Stored | None]], key: int, dead: weakref.ref[Any]) -> None:
    """An array is gone; unless another one has its place already."""
    if seen.get(key, (None, None))[0] is dead:
        del seen[key]


def _mapped(name: str, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    import numpy

    return numpy.frombuffer(open_stored(name), dtype).reshape(shape, order=order)
