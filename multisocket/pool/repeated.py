"""Arrays that are arguments of task after task: they are copied into shared memory once, not for each task.

Workers map them so that what a task writes to one is seen by nobody else: an array is the task's own, just as when it
travels with the task. An array that its owner changes meanwhile is seen as it was.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import posix_ipc

from .. import names
from ..errors import OutOfSharedMemory

LARGE = 1 << 20
"""Bytes from which on this is worth it."""


class Repeated:
    """The large arrays of tasks so far, and where those lie that were seen more than once."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._stored: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._finalizer = weakref.finalize(self, _remove_all, self._stored, os.getpid())

    def reduced(self, obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """What pickle makes of an object. None: as ever."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(obj) is not numpy.ndarray or obj.nbytes < LARGE:
            return None
        if obj.dtype.hasobject or not obj.flags.forc:
            return None
        name = self._name_of(obj)
        if name is None:
            return None
        order = "C" if obj.flags.c_contiguous else "F"
        return _mapped, (name, obj.nbytes, obj.dtype, obj.shape, order)

    def _name_of(self, array: Any) -> str | None:
        """Where it lies."""
        stored = self._stored.get(id(array))
        if stored is not None and stored[0]() is array:
            return stored[1]
        seen = self._seen.get(id(array))
        if seen is None or seen() is not array:
            self._seen[id(array)] = weakref.ref(array)
            return None
        try:
            name = names.new_memory(lambda name: _write(name, array))
        except OutOfSharedMemory:  # then it must go with each task, when there is room
            return None
        if stored is not None:
            names.remove_segment(stored[1])
        self._stored[id(array)] = weakref.ref(array), name
        return name

    def close(self) -> None:
        """No task needs them any more."""
        self._seen.clear()
        _remove_all(self._stored, os.getpid())


def _write(name: str, array: Any) -> str:
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    try:
        # Unlike a store into a mapping, this is an error when there is no memory.
        with os.fdopen(memory.fd, "wb") as file:
            file.write(array.reshape(-1, order="A").view("u1").data)
    except OSError as error:
        posix_ipc.unlink_shared_memory(name)
        raise OutOfSharedMemory(f"no shared memory for an array of {array.nbytes} bytes: {error}") from error
    return name


def _remove_all(stored: dict[int, tuple[weakref.ref[Any], str]], pid: int) -> None:
    while pid == os.getpid() and stored:
        _, (_, name) = stored.popitem()
        names.remove_segment(name)


def _mapped(name: str, size: int, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    import numpy

    memory = posix_ipc.SharedMemory(name)
    try:
        content = mmap.mmap(memory.fd, size, access=mmap.ACCESS_COPY)
    finally:
        memory.close_fd()
    return numpy.frombuffer(content, dtype).reshape(shape, order=order)
