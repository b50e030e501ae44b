# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False, embedsignature=True, embedsignature.format=clinic, autotestdict=False
# cython: freethreading_compatible=True
"""Rings in shared memory, and the part of a Socket that lives in it.

A thin binding: what is atomic, shared or fast is C (ring.h, endpoint.h), what needs Python objects is here. Two rules:
no lock of a ring is waited for with the GIL held, and the GIL is not waited for with such a lock held.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport pid_t

import math
import os
import sys
import threading
from types import GenericAlias
from weakref import WeakValueDictionary

from multisocket.errors import (
    BadMessage,
    BadOption,
    BrokenPath,
    Closed,
    ContentTooLong,
    MessageDropped,
    NotSupported,
    OutOfSharedMemory,
    Timeout,
)

include "extern.pxi"

__version__ = MULTISOCKET_VERSION.decode()

# Sizes are bytes.
cdef enum:
    # From this size on a copy is made without the GIL: it takes longer than handing the GIL over.
    LONG_COPY = 32768
    # From this size on a content goes through the arena. See docs/design/arena.md.
    LARGE = 131072
    # From this size on bytes are made on large pages.
    LARGE_PAGES = 4194304
    # How long a full /dev/shm is waited for, while there is something of ours to be given back.
    PATIENCE_NS = 2000000000
    BATCH = 64
    # Up to this size a content and what goes before it are joined on the stack.
    SHORT_JOIN = 4096
    # A topic of this size at most is compared where it lies.
    SHORT_HEAD = 256
    # A batch of small messages is copied with the GIL held, at most so many bytes at a go.
    BATCH_BYTES = 65536


cdef class Arena
cdef class Block
cdef class Board
cdef class Endpoint
cdef class Wire


cdef class Unset:
    """The type of UNSET: an argument that is not given."""

    def __repr__(self):
        return "<as the Socket's option says>"


UNSET = Unset()
cdef object _unset = UNSET


include "time.pxi"
include "forks.pxi"
include "message.pxi"
include "memory.pxi"
include "ring.pxi"
include "segment.pxi"
include "arena.pxi"
include "wire.pxi"
include "endpoint.pxi"
include "lookout.pxi"
include "topics.pxi"
include "claims.pxi"
include "about.pxi"

# Files and processes.


def is_locked(int fd):
    """Whether some other process holds a lock (``fcntl``) on the file."""
    return bool(platform_is_locked(fd))


def end_with(str guard not None):
    """Has this process end within a second after another one, whatever it is doing then.

    :param guard: path of a file that the other process keeps locked while it lives.
    :raises OSError: no thread, or no such file: the other process has ended already.
    """
    fd = os.open(guard, os.O_RDWR | os.O_CLOEXEC)
    error = lifeline_start(fd)
    if error:
        os.close(fd)
        raise OSError(error, os.strerror(error))


def cleanup_add(str path not None):
    """Has a file removed if SIGTERM, SIGHUP or SIGINT ends this process without anybody handling it."""
    c_cleanup_add(os.fsencode(path))


def cleanup_remove(str path not None):
    """Takes back :func:`cleanup_add`."""
    c_cleanup_remove(os.fsencode(path))
