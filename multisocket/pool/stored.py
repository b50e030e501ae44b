"""Bytes that lie in shared memory for all workers, under a name: what is too large to go with each task."""

from __future__ import annotations

import mmap
import os
import weakref

from .. import names, shm
from ..errors import OutOfSharedMemory


class Stored:
    """They are there as long as somebody refers to this, in the process that made it.

    :param content: is copied.
    :raises OutOfSharedMemory: there is no room.
    """

    __slots__ = ("__weakref__", "close", "name")

    def __init__(self, content: bytes | memoryview) -> None:
        self.name = names.new_memory(lambda name: _write(name, content))
        self.close = weakref.finalize(self, _remove, self.name, os.getpid())
        """Removes them now."""


def _write(name: str, content: bytes | memoryview) -> str:
    descriptor = shm.create_memory(name)
    try:
        # Unlike a store into a mapping, this is an error when there is no memory.
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        shm.unlink_memory(name)
        raise OutOfSharedMemory(f"no shared memory for {len(content)} bytes that workers need: {error}") from error
    return name


def _remove(name: str, pid: int) -> None:
    if pid == os.getpid():
        names.remove_segment(name)


def open_stored(name: str) -> mmap.mmap:
    """What another process has stored. What is written to it here nobody else sees.

    :raises FileNotFoundError: it is gone.
    """
    descriptor = shm.open_memory(name)
    try:
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
