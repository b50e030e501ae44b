# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False, embedsignature=False
"""Rings in shared memory, and the part of a Socket that lives in it.

A thin binding: what is atomic, shared or fast is C (ring.h, endpoint.h), what needs Python objects is here. Two rules:
no lock of a ring is waited for with the GIL held, and the GIL is not waited for with such a lock held.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import math
import os
import threading
from weakref import WeakValueDictionary

import posix_ipc

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

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from "stdatomic.h" nogil:
    int memory_order_acquire
    void atomic_thread_fence(int order)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef extern from "platform.h" nogil:
    const int64_t NEVER
    int WAIT_WOKEN, WAIT_TIMEOUT, WAIT_SIGNAL
    int64_t platform_now()
    int platform_reserve(int fd, void *base, size_t offset, size_t length)
    int platform_reserve_needs_fd()
    uint32_t platform_fork_generation()
    int platform_is_locked(int fd)

cdef extern from "cleanup.h" nogil:
    int c_cleanup_add "cleanup_add"(const char *path)
    void c_cleanup_remove "cleanup_remove"(const char *path)

cdef extern from "codec.h" nogil:
    const uint32_t META_SIZE, PATH_MAX_IDS
    int FLAG_SEND_TYPE, SEND_TO_ONE, SEND_TO_ALL, SEND_TO_DEST, FLAG_NO_SOURCE
    ctypedef struct message:
        uint8_t flags, ttl, hops, distance
        uint32_t length
        const uint8_t *source
        const uint8_t *destination
        const uint8_t *content
    void put_u32(uint8_t *out, uint32_t value)
    uint32_t get_u32(const uint8_t *data)
    uint64_t message_size(const message *m)
    size_t message_encode_head(uint8_t *out, const message *m)
    size_t message_decode(const uint8_t *data, size_t size, message *out)

cdef extern from "ring.h" nogil:
    int RING_OK, RING_EMPTY, RING_FULL, RING_BUSY, RING_CLOSED, RING_TOO_LONG, RING_NO_MEMORY, RING_CORRUPT
    const uint64_t RING_MAX_BYTES
    ctypedef struct ring_shared:
        uint64_t blocked, pushed, popped
    ctypedef struct ring:
        ring_shared *shared
        uint64_t capacity
        uint32_t limit
    ctypedef struct ring_writer:
        unsigned total
    ctypedef struct ring_reader:
        ring *r
    ctypedef struct record:
        uint32_t pipe
        uint64_t at
        message head
    uint64_t ring_capacity(uint64_t)
    int ring_init(ring_shared *shared, uint64_t capacity, uint32_t limit)
    int ring_attach(ring *r, ring_shared *shared, uint8_t *data, uint64_t room, void *base, int fd)
    uint64_t ring_max_message(const ring *r)
    uint32_t ring_depth(const ring *r)
    uint64_t ring_used(const ring *r)
    bint ring_is_closed(const ring *r)
    bint ring_has_room(const ring *r, uint64_t size)
    int ring_begin(ring *r, ring_writer *w, bint wait)
    int ring_put(ring_writer *w, uint32_t pipe, const message *m)
    void ring_publish(ring_writer *w)
    void ring_end(ring_writer *w)
    int ring_enter(ring *r, ring_reader *reader, bint wait)
    int ring_front(ring_reader *reader, record *out)
    void ring_pop(ring_reader *reader, const record *rec)
    void ring_leave(ring_reader *reader)
    void ring_copy(const ring *r, const record *rec, uint64_t offset, void *out, size_t n)
    uint64_t record_content_at(const record *rec)
    void ring_close(ring *r)
    uint64_t ring_frozen_start(const ring *r)
    int ring_wait_readable(ring *r, int64_t deadline)
    int ring_wait_room(ring *r, uint64_t size, int64_t deadline)
    void ring_await_consumers(ring *r)
    void ring_set_spin(uint32_t ns)
    uint32_t ring_get_spin()

cdef extern from "endpoint.h" nogil:
    int SEND_STALE, SEND_NO_PATH, SEND_TIMEOUT, SEND_SIGNAL, PIPE_OPEN
    ctypedef struct pipe_slot:
        uint32_t id, state, peer_id
        uint64_t sent
        char *peer
    ctypedef struct segment_header:
        uint64_t sent_before, dropped
        uint32_t high
    ctypedef struct segment:
        segment_header *shared
        pipe_slot *slots
        ring inbox
        ring pending
    ctypedef struct peer:
        uint32_t id
        uint32_t peer_id
        pipe_slot *slot
        ring *inbox
    ctypedef struct peer_list:
        uint32_t version
        uint32_t size
        uint32_t receivers
        peer *only
        peer **by_slot
    uint64_t segment_size(uint64_t inbox, uint64_t pending)
    int segment_init(void *base, int fd, uint64_t inbox, uint32_t inbox_limit, uint64_t pending, uint32_t pending_limit)
    int segment_attach(segment *seg, void *base, uint64_t size, int fd)
    void segment_close(segment *seg)
    bint segment_is_closed(const segment *seg)
    uint32_t segment_version(const segment *seg)
    uint32_t pipe_reserve(segment *seg)
    void pipe_open(segment *seg, uint32_t id, const char *peer, uint32_t peer_id)
    void pipe_release(segment *seg, uint32_t id)
    pipe_slot *pipe_find(const segment *seg, uint32_t id)
    int send_to_one(segment *seg, const peer_list *peers, uint32_t *turn, const message *m, bint wait_lock)
    int send_row(segment *seg, const peer_list *peers, uint32_t *turn, const message *row, unsigned n, unsigned *done,
                 bint wait_lock)
    int send_by_pipe(segment *seg, const peer_list *peers, uint32_t id, const message *m, bint wait_lock)
    int wait_to_send(segment *seg, const peer_list *peers, uint32_t id, uint64_t size, int64_t deadline)
    int flush_pending(segment *seg, const peer_list *peers, uint32_t *turn, bint wait_lock)
    int resend_unreceived(segment *seg, const peer_list *peers, uint32_t *turn, const ring *frozen, uint32_t peer_id,
                          uint64_t *at)

# From this size on (bytes) a copy is made without the GIL: it takes longer than handing the GIL over.
cdef enum:
    LONG_COPY = 32768
    BATCH = 64
    # A batch of small messages is copied with the GIL held, at most so many bytes at a go.
    BATCH_BYTES = 65536

cdef class Unset:
    """The type of UNSET: an argument that is not given."""

    def __repr__(self):
        return "<as the Socket's option says>"


UNSET = Unset()
cdef object _unset = UNSET


# ---------------------------------------------------------------------------------------------------------------------
# time


cdef int64_t _deadline(object timeout) except? -1:
    """Absolute nanoseconds for a timeout in seconds; None is never, 0 is at once."""
    if timeout is None:
        return NEVER
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise BadOption(f"timeout must be a number of seconds or None, not {timeout!r}") from None
    if math.isnan(seconds) or seconds < 0:
        raise BadOption(f"timeout must be 0 or more seconds, not {timeout!r}; None waits for ever")
    if seconds == 0:
        return 0
    if seconds > 1e9:
        return NEVER
    return platform_now() + <int64_t>(seconds * 1e9)


# A wait comes back to Python this often, where there is something to look after.
cdef enum:
    LOOK_NS = 100000000


cdef unsigned long _main_thread = threading.main_thread().ident


def _note_main_thread():
    """In a forked child the thread that forked is the main thread."""
    global _main_thread
    _main_thread = threading.get_ident()


os.register_at_fork(after_in_child=_note_main_thread)


cdef int64_t _look_at(int64_t deadline, bint always):
    """When a wait must come back at the latest: the main thread for signals, who shares a Socket for its owner."""
    if not always and PyThread_get_thread_ident() != _main_thread:
        return deadline
    cdef int64_t look = (platform_now() // LOOK_NS + 1) * LOOK_NS
    return look if look < deadline else deadline


def set_spin(double seconds):
    """How long a wait may spin before it sleeps, at most. 0 never spins. For the whole process.

    Spinning answers in half a microsecond where sleeping takes a wake-up, at the price of a processor meanwhile. Each
    Socket learns by itself when spinning pays; this is only the limit (default 100 microseconds).

    :param seconds: from 0 to 1.
    :raises BadOption: out of range.
    """
    if not 0 <= seconds <= 1:
        raise BadOption(f"spin must be between 0 and 1 seconds, not {seconds!r}")
    ring_set_spin(<uint32_t>(seconds * 1e9))


def get_spin():
    """The limit of spinning, seconds. See :func:`set_spin`."""
    return ring_get_spin() / 1e9


# ---------------------------------------------------------------------------------------------------------------------
# messages and their bytes


cdef bytes _encode_path(object path):
    """Pipe ids, nearest first, as u32 BE each."""
    cdef Py_ssize_t n, i
    if path is None:
        return b""
    ids = tuple(path)
    n = len(ids)
    if n > <Py_ssize_t>PATH_MAX_IDS:
        raise BadMessage(f"a path has at most {PATH_MAX_IDS} pipe ids, this one has {n}")
    out = PyBytes_FromStringAndSize(NULL, 4 * n)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(out)
    for i in range(n):
        try:
            put_u32(at + 4 * i, ids[i])
        except (TypeError, OverflowError):
            raise BadMessage(f"a path is made of pipe ids (integers of 32 bits), not {ids[i]!r}") from None
    return out


cdef tuple _decode_path(const uint8_t *at, Py_ssize_t n):
    cdef Py_ssize_t i
    return tuple([get_u32(at + 4 * i) for i in range(n)])


cdef class Message:
    """A message with all that came with it.

    :param content: the bytes; anything with the buffer protocol.
    :param send_type: 0 to one, 1 to all, 2 to a destination.
    :param destination: path of pipe ids, nearest first; for send type 2.
    :param source: path back to where it came from.
    :param ttl: how many more nodes may pass it on, 0 to 255.
    :param flags: further flags (internal 4, no source 8, raw 16, control 32).
    """

    cdef readonly object content
    cdef readonly int flags
    cdef readonly int ttl
    cdef readonly unsigned int pipe_id
    cdef bytes _source
    cdef bytes _destination

    def __init__(self, content=b"", *, int send_type=0, destination=(), source=(), int ttl=16, int flags=0):
        if not 0 <= send_type <= 2:
            raise BadMessage(f"send_type is 0 (to one), 1 (to all) or 2 (to a destination), not {send_type}")
        if not 0 <= ttl <= 255:
            raise BadMessage(f"ttl is between 0 and 255, not {ttl}")
        if not 0 <= flags <= 255:
            raise BadMessage(f"flags are between 0 and 255, not {flags}")
        self.content = content
        self.flags = (flags & ~FLAG_SEND_TYPE) | send_type
        self.ttl = ttl
        self._source = _encode_path(source)
        self._destination = _encode_path(destination)

    @property
    def send_type(self):
        """0 to one, 1 to all, 2 to a destination."""
        return self.flags & FLAG_SEND_TYPE

    @property
    def source(self):
        """Pipe ids back to the sender, nearest first: what ``send_to`` takes to answer."""
        return _decode_path(<const uint8_t *>PyBytes_AS_STRING(self._source), PyBytes_GET_SIZE(self._source) // 4)

    @property
    def destination(self):
        """Pipe ids still to go, nearest first. Empty: it has arrived."""
        return _decode_path(
            <const uint8_t *>PyBytes_AS_STRING(self._destination), PyBytes_GET_SIZE(self._destination) // 4
        )

    @property
    def hops(self):
        """How many pipes it came through."""
        return PyBytes_GET_SIZE(self._source) // 4

    @property
    def distance(self):
        """How many pipes it has still to go."""
        return PyBytes_GET_SIZE(self._destination) // 4

    def __repr__(self):
        return (
            f"<Message of {len(self.content)} bytes, send_type={self.send_type}, source={self.source},"
            f" destination={self.destination}, ttl={self.ttl}, flags={self.flags & ~FLAG_SEND_TYPE}>"
        )


cdef inline void _describe(message *m, int flags, int ttl, const void *content, Py_ssize_t length) noexcept:
    m.flags = <uint8_t>flags
    m.ttl = <uint8_t>ttl
    m.hops = 0
    m.distance = 0
    m.source = NULL
    m.destination = NULL
    m.content = <const uint8_t *>content
    m.length = <uint32_t>length


cdef int _check_length(Py_ssize_t length) except -1:
    if <uint64_t>length > 0xFFFFFFFF:
        raise ContentTooLong(f"a message holds at most {0xFFFFFFFF} bytes, this content has {length}; send it in parts")
    return 0


cdef void _set_paths(message *m, bytes source, bytes destination) noexcept:
    m.hops = <uint8_t>(PyBytes_GET_SIZE(source) // 4)
    m.distance = <uint8_t>(PyBytes_GET_SIZE(destination) // 4)
    m.source = <const uint8_t *>PyBytes_AS_STRING(source)
    m.destination = <const uint8_t *>PyBytes_AS_STRING(destination)


def encode(Message msg not None):
    """The message as it stands on the wire: Meta, paths, content.

    :raises ContentTooLong: more than 4 GiB.
    """
    cdef message m
    content = bytes(msg.content)
    _check_length(len(content))
    _describe(&m, msg.flags, msg.ttl, PyBytes_AS_STRING(content), len(content))
    _set_paths(&m, msg._source, msg._destination)
    head = PyBytes_FromStringAndSize(NULL, message_size(&m) - m.length)
    message_encode_head(<uint8_t *>PyBytes_AS_STRING(head), &m)
    return head + content


def decode(data):
    """Reads one message from the beginning of ``data``.

    :returns: ``(message, bytes used)``, or None when there are too few bytes yet.
    """
    cdef Py_buffer view
    cdef message m
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        used = message_decode(<const uint8_t *>view.buf, view.len, &m)
        if used == 0:
            return None
        msg = <Message>Message.__new__(Message)
        msg.flags = m.flags
        msg.ttl = m.ttl
        msg._source = PyBytes_FromStringAndSize(<const char *>m.source, 4 * m.hops)
        msg._destination = PyBytes_FromStringAndSize(<const char *>m.destination, 4 * m.distance)
        msg.content = PyBytes_FromStringAndSize(<const char *>m.content, m.length)
        return msg, used
    finally:
        PyBuffer_Release(&view)


# What a received record becomes. None: it is dropped (its ttl is used up, or its path is as long as paths get).


cdef Message _new_message(const record *rec):
    """All but content and paths, with the hop to here counted."""
    msg = <Message>Message.__new__(Message)
    msg.flags = rec.head.flags
    msg.ttl = rec.head.ttl - 1
    msg.pipe_id = rec.pipe
    return msg


cdef int _read_paths(const ring *r, const record *rec, Message msg) except -1:
    """Prepends our own pipe to the source; drops our own from the destination, since it has come so far."""
    cdef bint named = not rec.head.flags & FLAG_NO_SOURCE
    cdef Py_ssize_t known = 4 * rec.head.hops
    cdef Py_ssize_t ahead = 4 * rec.head.distance
    cdef bytes source = PyBytes_FromStringAndSize(NULL, known + (4 if named else 0))
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(source)
    if named:
        put_u32(at, rec.pipe)
        at += 4
    ring_copy(r, rec, 0, at, known)
    cdef Py_ssize_t passed = 4 if rec.head.flags & FLAG_SEND_TYPE == SEND_TO_DEST and ahead else 0
    cdef bytes destination = PyBytes_FromStringAndSize(NULL, ahead - passed)
    ring_copy(r, rec, known + passed, PyBytes_AS_STRING(destination), ahead - passed)
    msg._source = source
    msg._destination = destination
    return 0


cdef bint _is_spent(const record *rec) noexcept nogil:
    return rec.head.ttl == 0 or (rec.head.hops == PATH_MAX_IDS and not rec.head.flags & FLAG_NO_SOURCE)


# ---------------------------------------------------------------------------------------------------------------------
# taking from a ring
#
# With the GIL held, never waiting for the ring's lock. A long content is copied without the GIL, and then the lock is
# given back before the GIL is asked for again.


cdef inline object _build(const ring *r, const record *rec, bytes content, bint as_message):
    if not as_message:
        return content
    msg = _new_message(rec)
    _read_paths(r, rec, msg)
    msg.content = content
    return msg


cdef inline int _front(ring_reader *reader, record *rec) noexcept:
    """The next record that is not spent."""
    cdef int rc
    while True:
        rc = ring_front(reader, rec)
        if rc != RING_OK or not _is_spent(rec):
            return rc
        ring_pop(reader, rec)


cdef object _take_one(ring *r, bint as_message, int *rc):
    """The next record as bytes or Message. None: *rc says why."""
    cdef ring_reader reader
    cdef record rec
    cdef bytes content
    cdef char *out
    rc[0] = ring_enter(r, &reader, False)
    if rc[0] != RING_OK:
        return None
    rc[0] = _front(&reader, &rec)
    if rc[0] != RING_OK:
        ring_leave(&reader)
        return None
    try:
        content = PyBytes_FromStringAndSize(NULL, rec.head.length)
        taken = _build(r, &rec, content, as_message)
    except BaseException:
        ring_leave(&reader)
        raise
    out = PyBytes_AS_STRING(content)
    if rec.head.length < LONG_COPY:
        ring_copy(r, &rec, record_content_at(&rec), out, rec.head.length)
        ring_pop(&reader, &rec)
        ring_leave(&reader)
        return taken
    with nogil:
        ring_copy(r, &rec, record_content_at(&rec), out, rec.head.length)
        ring_pop(&reader, &rec)
        ring_leave(&reader)
    return taken


cdef int _take_short(ring *r, list into, Py_ssize_t most) except -1:
    """Takes short records under one lock, until there are `most` in the list, or a long one, or enough bytes."""
    cdef ring_reader reader
    cdef record rec
    cdef bytes content
    cdef uint64_t copied = 0
    cdef int rc = ring_enter(r, &reader, False)
    if rc != RING_OK:
        return rc
    try:
        while len(into) < most and copied < BATCH_BYTES:
            rc = _front(&reader, &rec)
            if rc != RING_OK or rec.head.length >= LONG_COPY:
                break
            content = PyBytes_FromStringAndSize(NULL, rec.head.length)
            ring_copy(r, &rec, record_content_at(&rec), PyBytes_AS_STRING(content), rec.head.length)
            into.append(content)
            ring_pop(&reader, &rec)
            copied += rec.head.length
    finally:
        ring_leave(&reader)
    return rc


cdef object _CORRUPT = "what stands in shared memory contradicts itself: a peer wrote wrong bytes; unread messages are lost"


# ---------------------------------------------------------------------------------------------------------------------
# mapped memory


cdef class _Mapping:
    """A shared-memory segment mapped into this process, until nobody refers to it any more."""

    cdef object __weakref__
    cdef void *base
    cdef size_t size
    cdef int fd

    def __cinit__(self):
        self.base = NULL
        self.fd = -1

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
        if self.fd >= 0:
            c_close(self.fd)

    cdef int map(self, object shared_memory) except -1:
        """Maps a posix_ipc.SharedMemory as a whole, and closes its descriptor unless memory is reserved through it."""
        cdef int fd = shared_memory.fd
        cdef size_t size = os.fstat(fd).st_size
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if platform_reserve_needs_fd():
            self.fd = fd
        else:
            shared_memory.close_fd()
        if base == MAP_FAILED:
            raise OutOfSharedMemory(
                f"could not map {size} bytes of shared memory: the limit of address space or of mappings"
                " (vm.max_map_count) is reached"
            )
        self.base = base
        self.size = size
        return 0


cdef object _create_memory(str name, uint64_t size):
    try:
        return posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=size)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"shared memory {name} exists already: take another name, or unlink it") from None
    except (OSError, posix_ipc.Error) as error:
        raise OutOfSharedMemory(f"could not create {size} bytes of shared memory named {name}: {error}") from error


cdef object _no_memory(uint64_t size):
    try:
        stat = os.statvfs("/dev/shm")
        found = f"{stat.f_bavail * stat.f_frsize} bytes are free in /dev/shm"
    except OSError:
        found = "none is free"
    return OutOfSharedMemory(
        f"{size} bytes of shared memory were asked for, {found}. Enlarge it (a container's --shm-size, or"
        " mount -o remount,size=... /dev/shm), or let queues be shorter (recv_queue_bytes)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# a ring by itself

cdef enum:
    RING_HEADER = 4096


cdef class Ring:
    """A bounded queue of byte strings in shared memory, for any number of producers and consumers in any processes.

    Make one with :meth:`create`, attach to it elsewhere with :meth:`open`. A process that is killed at any instant
    leaves it usable: a half-pushed record is never seen, a half-popped one is still there.
    """

    cdef _Mapping mapping
    cdef ring r
    cdef readonly str name

    @staticmethod
    def create(str name not None, capacity=1 << 20, limit=None):
        """Makes a ring under a new name.

        :param name: of the POSIX shared memory, like ``/jobs``. Whoever creates it unlinks it.
        :param capacity: bytes, rounded up to a power of two (4 KiB to 32 GiB). A record takes 16 bytes and its content.
        :param limit: records at most, None for as many as fit.
        :raises FileExistsError: the name is in use.
        :raises OutOfSharedMemory: no memory for it.
        :raises BadOption: out of range.
        """
        if not 1 <= capacity <= RING_MAX_BYTES:
            raise BadOption(f"capacity is between 1 and {RING_MAX_BYTES} bytes, not {capacity!r}")
        if limit is not None and not 1 <= limit <= 0x7FFFFFFF:
            raise BadOption(f"limit is between 1 and {0x7FFFFFFF} records or None, not {limit!r}")
        cdef uint64_t size = ring_capacity(capacity)
        self = <Ring>Ring.__new__(Ring)
        memory = _create_memory(name, RING_HEADER + size)
        try:
            self.mapping = _Mapping()
            self.mapping.map(memory)
            if platform_reserve(self.mapping.fd, self.mapping.base, 0, RING_HEADER) != 0:
                raise _no_memory(RING_HEADER)
            if ring_init(<ring_shared *>self.mapping.base, size, limit or 0x7FFFFFFF) != 0:
                raise NotSupported("this system has no robust process-shared mutexes")
            self.attach(name)
        except BaseException:
            posix_ipc.unlink_shared_memory(name)
            raise
        return self

    @staticmethod
    def open(str name not None):
        """Attaches to a ring that exists.

        :raises FileNotFoundError: there is none of that name.
        :raises BadMessage: what is there is no ring.
        """
        self = <Ring>Ring.__new__(Ring)
        try:
            memory = posix_ipc.SharedMemory(name)
        except posix_ipc.ExistentialError:
            raise FileNotFoundError(f"there is no ring {name}: create it first, or it was unlinked") from None
        self.mapping = _Mapping()
        self.mapping.map(memory)
        self.attach(name)
        return self

    cdef int attach(self, str name) except -1:
        cdef uint8_t *base = <uint8_t *>self.mapping.base
        cdef bint large = self.mapping.size > RING_HEADER
        self.name = name
        if not large or ring_attach(
            &self.r, <ring_shared *>base, base + RING_HEADER, self.mapping.size - RING_HEADER, base, self.mapping.fd
        ) != RING_OK:
            raise BadMessage(f"{name} holds no ring of this version")
        return 0

    def push(self, content, timeout=None):
        """Appends one record. When it returns, the record outlives this process.

        :param content: bytes-like.
        :param timeout: seconds to wait for room; None waits for ever, 0 never.
        :raises Timeout: no room in that time.
        :raises ContentTooLong: more than an empty ring can take.
        :raises Closed: the ring is closed.
        """
        if not PyBytes_CheckExact(content):
            content = bytes(memoryview(content))
        self.push_bytes(content, _deadline(timeout))

    cdef int push_bytes(self, bytes content, int64_t deadline) except -1:
        cdef message m
        cdef ring_writer w
        cdef int rc
        cdef int64_t look
        _check_length(PyBytes_GET_SIZE(content))
        _describe(&m, 0, 1, PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
        while True:
            with nogil:
                rc = ring_begin(&self.r, &w, True)
                if rc == RING_OK:
                    rc = ring_put(&w, 0, &m)
                    ring_publish(&w)
                    ring_end(&w)
            if rc == RING_OK:
                return 0
            if rc != RING_FULL:
                self.fail(rc, m.length)
            if deadline <= platform_now():
                raise Timeout(f"ring {self.name} is full: {ring_depth(&self.r)} records wait in it")
            look = _look_at(deadline, False)
            with nogil:
                ring_wait_room(&self.r, message_size(&m), look)
            PyErr_CheckSignals()

    def pop(self, timeout=None):
        """Takes the oldest record, as bytes.

        :param timeout: seconds to wait for one; None waits for ever, 0 never.
        :raises Timeout: none came in that time.
        :raises Closed: the ring is closed.
        """
        cdef int rc
        cdef int64_t deadline = _deadline(timeout)
        while True:
            content = _take_one(&self.r, False, &rc)
            if rc == RING_OK:
                return content
            self.await_record(rc, deadline)

    cdef int await_record(self, int rc, int64_t deadline) except -1:
        if rc == RING_BUSY:
            with nogil:
                ring_await_consumers(&self.r)
            return 0
        if rc != RING_EMPTY:
            self.fail(rc, 0)
        if deadline <= platform_now():
            raise Timeout(f"ring {self.name} is empty")
        cdef int64_t look = _look_at(deadline, False)
        with nogil:
            ring_wait_readable(&self.r, look)
        return PyErr_CheckSignals()

    def push_many(self, contents, timeout=None):
        """Appends records, one after the other; others may come in between.

        :returns: how many: all, or an error is raised whose ``sent`` tells it.
        """
        cdef int64_t deadline = _deadline(timeout)
        sent = 0
        try:
            for content in contents:
                self.push_bytes(bytes(content), deadline)
                sent += 1
        except Timeout as error:
            error.sent = sent
            raise
        return sent

    def pop_many(self, Py_ssize_t max_records, timeout=None):
        """Waits for one record and takes it with what else is there, up to ``max_records``, oldest first."""
        cdef int rc
        cdef int64_t deadline = _deadline(timeout)
        cdef list out = []
        while len(out) < max_records:
            rc = _take_short(&self.r, out, max_records)
            if rc == RING_OK and len(out) < max_records:
                one = _take_one(&self.r, False, &rc)
                if rc == RING_OK:
                    out.append(one)
            if rc == RING_OK:
                continue
            if out:
                break
            self.await_record(rc, deadline)
        return out

    cdef int fail(self, int rc, uint64_t length) except -1:
        if rc == RING_CLOSED:
            raise Closed(f"ring {self.name} is closed")
        if rc == RING_TOO_LONG:
            raise ContentTooLong(
                f"a content of {length} bytes was given, ring {self.name} takes at most"
                f" {ring_max_message(&self.r) - META_SIZE}; create it with a larger capacity"
            )
        if rc == RING_NO_MEMORY:
            raise _no_memory(length)
        raise BadMessage(f"ring {self.name}: {_CORRUPT}")

    @property
    def depth(self):
        """Records in it now."""
        return ring_depth(&self.r)

    def __len__(self):
        return ring_depth(&self.r)

    @property
    def used(self):
        """Bytes in use now."""
        return ring_used(&self.r)

    @property
    def capacity(self):
        """Bytes."""
        return self.r.capacity

    @property
    def closed(self):
        return ring_is_closed(&self.r)

    def stats(self):
        """Counters since its creation: records pushed and popped, pushes that had to wait, depth and bytes now."""
        return {
            "pushed": self.r.shared.pushed,
            "popped": self.r.shared.popped,
            "blocked": self.r.shared.blocked,
            "depth": self.depth,
            "used": self.used,
        }

    def close(self):
        """Ends it for all processes: waiting ones are woken, what is in it can no longer be taken."""
        with nogil:
            ring_close(&self.r)

    def unlink(self):
        """Removes the name; the memory goes with its last user. A name that is gone is no error."""
        try:
            posix_ipc.unlink_shared_memory(self.name)
        except posix_ipc.ExistentialError:
            pass

    def __repr__(self):
        return f"<Ring {self.name} depth={self.depth} used={self.used} of {self.capacity} bytes>"


# ---------------------------------------------------------------------------------------------------------------------
# segments of Sockets

# One mapping of a segment serves all Sockets of the process.
cdef object _mapped = WeakValueDictionary()


cdef class Segment(_Mapping):
    """The shared memory of one Socket: its inbox, what it has pending, its table of pipes."""

    cdef segment seg
    cdef readonly str name

    @staticmethod
    def create(str name not None, uint64_t inbox_bytes, uint32_t inbox_limit, uint32_t pending_limit):
        """Makes the segment of a new Socket.

        :raises OutOfSharedMemory: no memory for it.
        """
        cdef uint64_t capacity = ring_capacity(inbox_bytes)
        memory = _create_memory(name, segment_size(capacity, capacity))
        self = <Segment>Segment.__new__(Segment)
        cdef int rc
        try:
            self.map(memory)
            rc = segment_init(self.base, self.fd, capacity, inbox_limit, capacity, pending_limit)
            if rc == RING_NO_MEMORY:
                raise _no_memory(4096)
            if rc != RING_OK:
                raise NotSupported("this system has no robust process-shared mutexes")
            self.attach(name)
        except BaseException:
            posix_ipc.unlink_shared_memory(name)
            raise
        return self

    @staticmethod
    def open(str name not None):
        """Attaches to the segment of a Socket of any process.

        :raises FileNotFoundError: it is gone.
        :raises BadMessage: what is there is no segment.
        """
        known = _mapped.get(name)
        if known is not None:
            return known
        try:
            memory = posix_ipc.SharedMemory(name)
        except (posix_ipc.Error, OSError) as error:
            raise FileNotFoundError(f"shared memory {name} is gone: its Socket is closed ({error})") from None
        self = <Segment>Segment.__new__(Segment)
        self.map(memory)
        self.attach(name)
        return self

    cdef int attach(self, str name) except -1:
        if segment_attach(&self.seg, self.base, self.size, self.fd) != RING_OK:
            raise BadMessage(f"{name} holds no Socket of this version")
        self.name = name
        _mapped[name] = self
        return 0

    def close(self):
        """Freezes it for all processes."""
        with nogil:
            segment_close(&self.seg)

    @property
    def closed(self):
        return segment_is_closed(&self.seg)


cdef class _Peer:
    """One open pipe with the mapping that keeps its ring there."""

    cdef peer p
    cdef Segment target


cdef class _Peers:
    """The open pipes at one version of the pipe table. Never changed, so a thread without the GIL can use it while
    others go on to the next version; the reference it holds keeps the memory."""

    cdef peer_list *list
    cdef dict by_id

    def __dealloc__(self):
        free(self.list)


cdef _Peers _read_peers(Segment own, _Peers before):
    """The pipe table as it is now; keeps what it knows."""
    cdef uint32_t version = segment_version(&own.seg)
    cdef uint32_t size = own.seg.shared.high + 1
    cdef uint32_t i, number
    cdef pipe_slot *slot
    cdef _Peer one
    if size > 65536:
        raise BadMessage(_CORRUPT)
    self = <_Peers>_Peers.__new__(_Peers)
    self.by_id = {}
    self.list = <peer_list *>malloc(sizeof(peer_list) + size * sizeof(peer *))
    if self.list == NULL:
        raise MemoryError
    memset(self.list, 0, sizeof(peer_list) + size * sizeof(peer *))
    self.list.version = version
    self.list.size = size
    for i in range(1, size):
        slot = &own.seg.slots[i]
        number = slot.id
        if number == 0 or slot.state != PIPE_OPEN:
            continue
        one = before.by_id.get(number) if before is not None else None
        if one is None:
            one = _new_peer(slot, number)
        if one is None:
            continue
        self.by_id[number] = one
        self.list.by_slot[i] = &one.p
        if one.p.inbox != NULL:
            self.list.receivers += 1
            self.list.only = &one.p if self.list.receivers == 1 else NULL
    return self


cdef _Peer _new_peer(pipe_slot *slot, uint32_t number):
    """None when the peer's segment is gone: its pipe will be removed soon."""
    self = <_Peer>_Peer.__new__(_Peer)
    self.p.id = number
    self.p.peer_id = slot.peer_id
    self.p.slot = slot
    self.p.inbox = NULL
    name = (<bytes>slot.peer[:31]).split(b"\0", 1)[0].decode("ascii", "replace")
    atomic_thread_fence(memory_order_acquire)
    if slot.id != number:  # it was given away while we read
        return None
    if not name:
        return self
    try:
        self.target = Segment.open(name)
    except (FileNotFoundError, BadMessage):
        return None
    self.p.inbox = &self.target.seg.inbox
    return self


# ---------------------------------------------------------------------------------------------------------------------
# the Socket's data path


cdef struct _Batch:
    message row[BATCH]
    Py_buffer views[BATCH]
    bint held[BATCH]
    unsigned n


cdef class Endpoint:
    """Sending and receiving of a Socket. What connects it is above: see ``multisocket.Socket``.

    :param segment: of this Socket.
    :param guard: path of a file that the process which made the Socket keeps locked while it lives.
    :param here: that is this process.
    :param owned: this handle may connect the Socket, and close it for all.
    """

    cdef Segment segment
    cdef _Peers peers
    cdef uint32_t turn
    cdef uint32_t generation
    cdef str guard
    cdef bint here, owned
    cdef int guard_fd
    cdef bint refuses_send, refuses_recv
    cdef bint best_effort
    cdef int ttl
    cdef object send_timeout, recv_timeout

    def __cinit__(self):
        self.guard_fd = -1

    def __dealloc__(self):
        if self.guard_fd >= 0:
            c_close(self.guard_fd)

    def _attach(self, Segment segment not None, str guard, *, bint here, bint owned, bint no_send, bint no_recv, bint best_effort,
                int ttl, send_timeout, recv_timeout):
        self.segment = segment
        self.guard = guard
        self.here = here
        self.owned = owned
        self.generation = platform_fork_generation()
        self.refuses_send = no_send
        self.refuses_recv = no_recv
        self.best_effort = best_effort
        self.ttl = ttl
        self.send_timeout = send_timeout
        self.recv_timeout = recv_timeout
        self.peers = _read_peers(segment, None)

    def _detach(self):
        """Gives up this handle. Threads that are just in it keep what they use until they return."""
        self.segment = None
        self.peers = None

    @property
    def closed(self):
        """Whether this handle, or the Socket for all, is closed."""
        return self.segment is None or segment_is_closed(&self.segment.seg)

    # --- whose it is ---

    @property
    def _is_owner(self):
        """Whether this process may connect and close it for all."""
        return self.owned and self.is_here()

    cdef bint is_here(self) noexcept:
        """Whether the owner is this very process, and not one that this one was forked from."""
        return self.here and self.generation == platform_fork_generation()

    cdef bint owner_lives(self):
        if self.is_here():
            return True
        if self.guard_fd < 0:
            try:
                self.guard_fd = os.open(self.guard, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return False
        return platform_is_locked(self.guard_fd)

    cdef Segment alive(self):
        segment = self.segment
        if segment is None:
            raise Closed("this Socket is closed: make a new one")
        return segment

    cdef int look_around(self, Segment segment) except -1:
        """What a wait does between its slices: signals, and whether the owner still lives."""
        PyErr_CheckSignals()
        if not self.owner_lives():
            segment.close()
        return 0

    cdef object closed_error(self):
        if self.segment is None or self._is_owner:
            return Closed("this Socket was closed: make a new one")
        if self.owner_lives():
            return Closed("this Socket was closed by the process that made it")
        return Closed("the process that made this Socket has ended, and the Socket with it")

    # --- failures ---

    cdef object failure(self, Segment segment, int rc, uint64_t length):
        if rc == RING_CLOSED:
            return self.closed_error()
        if rc == RING_TOO_LONG:
            return ContentTooLong(
                f"a content of {length} bytes was given, the receiving queues take at most"
                f" {self.longest(segment)}; give the receiving Socket a larger recv_queue_bytes"
            )
        if rc == RING_NO_MEMORY:
            return _no_memory(length)
        return BadMessage(_CORRUPT)

    cdef uint64_t longest(self, Segment segment):
        cdef uint64_t most = 0
        cdef _Peer one
        for one in self.peers.by_id.values():
            if one.p.inbox != NULL:
                most = max(most, ring_max_message(one.p.inbox))
        return (most or ring_max_message(&segment.seg.pending)) - META_SIZE

    cdef object no_room(self, timeout):
        if self.peers is not None and not self.peers.list.receivers:
            return Timeout(f"no peer was connected within {timeout} s, and the send queue is full")
        return Timeout(f"no peer had room within {timeout} s: receivers are slower than senders, or stopped")

    # --- sending to one ---

    def send(self, content, timeout=_unset):
        """Sends to one peer: the one with the shortest queue that has room, ties in turn.

        When it returns, a peer on this machine has the message in its memory. While no peer is connected,
        ``send_queue_size`` messages are kept; then it waits.

        :param content: anything with the buffer protocol.
        :param timeout: seconds; None waits for ever, 0 never waits. Default: the option ``send_timeout``.
        :raises Timeout: no room in that time.
        :raises MessageDropped: no room, and the Socket is best effort.
        :raises ContentTooLong: larger than the receiving queue.
        :raises Closed: the Socket is closed.
        """
        cdef message m
        cdef Py_buffer view
        if PyBytes_CheckExact(content):
            _check_length(PyBytes_GET_SIZE(content))
            _describe(&m, SEND_TO_ONE, self.ttl, PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
            self.deliver(&m, 0, timeout)
            return
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, SEND_TO_ONE, self.ttl, view.buf, view.len)
            self.deliver(&m, 0, timeout)
        finally:
            PyBuffer_Release(&view)

    cdef int deliver(self, message *m, uint32_t pipe, object timeout) except -1:
        """One message to one peer, or to the peer of a pipe."""
        cdef Segment segment = self.alive()
        cdef int rc
        if self.refuses_send:
            raise NotSupported("this Socket was made with no_send=True: it only receives")
        if m.length < LONG_COPY:
            if pipe:
                rc = send_by_pipe(&segment.seg, self.peers.list, pipe, m, False)
            else:
                rc = send_to_one(&segment.seg, self.peers.list, &self.turn, m, False)
            if rc == RING_OK:
                return 0
        return self.deliver_slowly(segment, m, pipe, timeout)

    cdef int deliver_slowly(self, Segment segment, message *m, uint32_t pipe, object timeout) except -1:
        cdef int64_t deadline = -1
        cdef _Peers peers
        cdef uint32_t turn
        cdef int rc
        if timeout is _unset:
            timeout = self.send_timeout
        deadline = _deadline(timeout)
        while True:
            peers = self.current_peers(segment)
            turn = self.turn
            with nogil:
                if pipe:
                    rc = send_by_pipe(&segment.seg, peers.list, pipe, m, True)
                else:
                    rc = send_to_one(&segment.seg, peers.list, &turn, m, True)
            self.turn = turn
            if rc == RING_OK:
                return 0
            if rc == RING_FULL:
                self.await_room(segment, peers, pipe, message_size(m), deadline, timeout)
            elif rc == SEND_NO_PATH:
                raise BrokenPath(f"pipe {pipe} of the destination is gone, or never was: its peer has disconnected")
            elif rc != SEND_STALE:
                raise self.failure(segment, rc, m.length)

    cdef _Peers current_peers(self, Segment segment):
        """The list of peers as the pipe table now is."""
        peers = self.peers
        if peers is None:
            raise self.closed_error()
        if peers.list.version != segment_version(&segment.seg):
            peers = _read_peers(segment, peers)
            if self.peers is None:
                raise self.closed_error()
            self.peers = peers
        return peers

    cdef int await_room(self, Segment segment, _Peers peers, uint32_t pipe, uint64_t size, int64_t deadline,
                        object timeout) except -1:
        cdef int rc
        if self.best_effort:
            segment.seg.shared.dropped += 1
            raise MessageDropped("no peer has room, and this Socket sends by best effort: the message was dropped")
        if deadline <= platform_now():
            raise self.no_room(timeout)
        cdef int64_t look = _look_at(deadline, not self.is_here())
        with nogil:
            rc = wait_to_send(&segment.seg, peers.list, pipe, size, look)
        if rc != RING_OK:
            self.look_around(segment)
        return 0

    # --- sending to others ---

    def send_to(self, destination, content, timeout=_unset):
        """Sends along a path of pipes, as a received message's ``source`` gives it.

        :param destination: pipe ids, nearest first.
        :param content: anything with the buffer protocol.
        :param timeout: seconds; None waits for ever, 0 never waits.
        :raises BrokenPath: the first pipe is gone. (Later ones are found by the nodes they belong to.)
        :raises Timeout, MessageDropped, ContentTooLong, Closed: as ``send``.
        """
        cdef message m
        cdef Py_buffer view
        cdef bytes path = _encode_path(destination)
        if not path:
            raise BrokenPath("the destination is empty: there is no pipe to send through")
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, SEND_TO_DEST, self.ttl, view.buf, view.len)
            _set_paths(&m, b"", path)
            self.deliver_by_type(&m, timeout)
        finally:
            PyBuffer_Release(&view)

    def send_all(self, content, timeout=_unset):
        """Sends to every peer that is connected now.

        :param content: anything with the buffer protocol.
        :param timeout: seconds for all together; None waits for ever, 0 never waits.
        :returns: how many peers it went to.
        :raises Timeout: some peers had no room in that time; its ``sent`` tells how many got it.
        :raises ContentTooLong, Closed: as ``send``. With best effort, peers without room are left out.
        """
        cdef message m
        cdef Py_buffer view
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, SEND_TO_ALL, self.ttl, view.buf, view.len)
            return self.deliver_to_all(&m, timeout)
        finally:
            PyBuffer_Release(&view)

    cdef int deliver_to_all(self, message *m, object timeout) except -1:
        cdef Segment segment = self.alive()
        cdef int64_t deadline
        cdef int sent = 0, rc
        cdef list later = []
        if self.refuses_send:
            raise NotSupported("this Socket was made with no_send=True: it only receives")
        if timeout is _unset:
            timeout = self.send_timeout
        deadline = _deadline(timeout)
        for number in self.current_peers(segment).by_id:
            rc = self.try_pipe(segment, m, number)
            if rc == RING_OK:
                sent += 1
            elif rc == RING_FULL and self.best_effort:
                segment.seg.shared.dropped += 1
            elif rc == RING_FULL:
                later.append(number)
        for number in later:
            try:
                self.deliver_until(m, number, deadline)
                sent += 1
            except BrokenPath:
                pass
            except Timeout as error:
                error.sent = sent
                raise
        return sent

    cdef int try_pipe(self, Segment segment, message *m, uint32_t pipe) except -1:
        """RING_OK, RING_FULL, or SEND_NO_PATH when the peer is gone meanwhile."""
        cdef _Peers peers
        cdef int rc = RING_BUSY
        if m.length < LONG_COPY:
            rc = send_by_pipe(&segment.seg, self.current_peers(segment).list, pipe, m, False)
        while rc == RING_BUSY or rc == SEND_STALE:
            peers = self.current_peers(segment)
            with nogil:
                rc = send_by_pipe(&segment.seg, peers.list, pipe, m, True)
        if rc != RING_OK and rc != RING_FULL and rc != SEND_NO_PATH:
            raise self.failure(segment, rc, m.length)
        return rc

    cdef int deliver_until(self, message *m, uint32_t pipe, int64_t deadline) except -1:
        left = None if deadline == NEVER else max(0.0, (deadline - platform_now()) / 1e9)
        return self.deliver(m, pipe, left)

    def send_msg(self, Message msg not None, timeout=_unset):
        """Sends a message as it is, with its paths, flags and ttl: forwards it, as a switch does.

        :raises MessageDropped: its ttl is used up (or no room, with best effort).
        :raises BrokenPath: to a destination, and it has arrived already or the next pipe is gone.
        :raises Timeout, ContentTooLong, Closed: as ``send``.
        """
        cdef message m
        cdef Py_buffer view
        if msg.ttl == 0:
            raise MessageDropped("the message's ttl is used up: it came through too many nodes")
        PyObject_GetBuffer(msg.content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, msg.flags, msg.ttl, view.buf, view.len)
            _set_paths(&m, msg._source, msg._destination)
            self.deliver_by_type(&m, timeout)
        finally:
            PyBuffer_Release(&view)

    cdef int deliver_by_type(self, message *m, object timeout) except -1:
        cdef int kind = m.flags & FLAG_SEND_TYPE
        if kind == SEND_TO_ONE:
            return self.deliver(m, 0, timeout)
        if kind == SEND_TO_ALL:
            self.deliver_to_all(m, timeout)
            return 0
        if m.distance == 0:
            raise BrokenPath("the message is for a destination and has arrived: there is no pipe to pass it on to")
        cdef uint32_t pipe = get_u32(m.destination)
        if pipe == 0:
            raise BrokenPath("pipe 0 of the destination is gone, or never was: ids begin with 1")
        return self.deliver(m, pipe, timeout)

    # --- sending many ---

    def send_many(self, contents, timeout=_unset):
        """Sends each to one peer, like ``send``, but many with one call.

        :param contents: iterable of contents.
        :param timeout: seconds for all together; None waits for ever, 0 never waits.
        :returns: how many: all.
        :raises Timeout: its ``sent`` tells how many had been sent, from the first on.
        :raises MessageDropped, ContentTooLong, Closed: as ``send``; those before had been sent.
        """
        cdef _Batch batch
        cdef Py_ssize_t at = 0
        cdef tuple items = tuple(contents)
        cdef int64_t deadline
        if timeout is _unset:
            timeout = self.send_timeout
        deadline = _deadline(timeout)
        while at < len(items):
            try:
                self.fill(&batch, items, at)
                at += self.deliver_batch(&batch, deadline, timeout, at)
            finally:
                _empty(&batch)
        return at

    cdef int fill(self, _Batch *batch, tuple items, Py_ssize_t at) except -1:
        """Describes the next items, up to a batch."""
        cdef Py_buffer *view
        batch.n = 0
        while batch.n < BATCH and at < len(items):
            view = &batch.views[batch.n]
            content = items[at]
            batch.held[batch.n] = not PyBytes_CheckExact(content)
            if not batch.held[batch.n]:
                view.buf = PyBytes_AS_STRING(content)
                view.len = PyBytes_GET_SIZE(content)
            else:
                PyObject_GetBuffer(content, view, PyBUF_SIMPLE)
            batch.n += 1
            _check_length(view.len)
            _describe(&batch.row[batch.n - 1], SEND_TO_ONE, self.ttl, view.buf, view.len)
            at += 1
            if view.len >= LONG_COPY:
                break
        return 0

    cdef int deliver_batch(self, _Batch *batch, int64_t deadline, object timeout, Py_ssize_t before) except -1:
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef unsigned done = 0
        cdef uint32_t turn
        cdef int rc
        if self.refuses_send:
            raise NotSupported("this Socket was made with no_send=True: it only receives")
        if batch.row[batch.n - 1].length < LONG_COPY:
            rc = send_row(&segment.seg, self.peers.list, &self.turn, batch.row, batch.n, &done, False)
            if rc == RING_OK:
                return done
        while True:
            peers = self.current_peers(segment)
            turn = self.turn
            with nogil:
                rc = send_row(&segment.seg, peers.list, &turn, batch.row + done, batch.n - done, &done, True)
            self.turn = turn
            if rc == RING_OK:
                return done
            if rc == RING_FULL:
                try:
                    self.await_room(segment, peers, 0, message_size(&batch.row[done]), deadline, timeout)
                except Timeout as error:
                    error.sent = before + done
                    raise
            elif rc != SEND_STALE:
                raise self.failure(segment, rc, batch.row[done].length)

    # --- receiving ---

    def recv(self, timeout=_unset):
        """The next message's content. Any thread and process that has this Socket gets another message.

        :param timeout: seconds; None waits for ever, 0 never waits. Default: the option ``recv_timeout``.
        :raises Timeout: none came in that time.
        :raises Closed: the Socket is closed, or the process that made it has ended.
        """
        return self.receive(False, timeout)

    def recv_msg(self, timeout=_unset):
        """The next :class:`Message`, with its source path to answer to. Otherwise like ``recv``."""
        return self.receive(True, timeout)

    cdef object receive(self, bint as_message, object timeout):
        cdef Segment segment = self.alive()
        cdef int64_t deadline = -1
        cdef int rc
        if self.refuses_recv:
            raise NotSupported("this Socket was made with no_recv=True: it only sends")
        while True:
            taken = _take_one(&segment.seg.inbox, as_message, &rc)
            if rc == RING_OK:
                return taken
            if deadline < 0:
                if timeout is _unset:
                    timeout = self.recv_timeout
                deadline = _deadline(timeout)
            self.await_message(segment, rc, deadline, timeout)

    cdef int await_message(self, Segment segment, int rc, int64_t deadline, object timeout) except -1:
        cdef int why
        if rc == RING_BUSY:
            with nogil:
                ring_await_consumers(&segment.seg.inbox)
            return 0
        if rc != RING_EMPTY:
            raise self.failure(segment, rc, 0)
        if deadline <= platform_now():
            self.look_around(segment)
            if ring_is_closed(&segment.seg.inbox):
                raise self.closed_error()
            raise Timeout(f"no message came within {timeout} s")
        cdef int64_t look = _look_at(deadline, not self.is_here())
        with nogil:
            why = ring_wait_readable(&segment.seg.inbox, look)
        if why != WAIT_WOKEN:
            self.look_around(segment)
        return 0

    def recv_many(self, Py_ssize_t max_messages, timeout=_unset):
        """Waits for one message and takes it with what else is there, up to ``max_messages`` contents, oldest first.

        :param max_messages: at least 1.
        :param timeout: seconds for the first; None waits for ever, 0 never waits.
        :raises Timeout: none came in that time.
        :raises Closed: as ``recv``.
        """
        cdef Segment segment = self.alive()
        cdef int64_t deadline = -1
        cdef list out = []
        cdef int rc
        if self.refuses_recv:
            raise NotSupported("this Socket was made with no_recv=True: it only sends")
        if max_messages < 1:
            raise BadOption(f"max_messages is 1 or more, not {max_messages}")
        while len(out) < max_messages:
            rc = _take_short(&segment.seg.inbox, out, max_messages)
            if rc == RING_OK and len(out) < max_messages:
                one = _take_one(&segment.seg.inbox, False, &rc)
                if rc == RING_OK:
                    out.append(one)
            if rc == RING_OK:
                continue
            if out:
                break
            if deadline < 0:
                if timeout is _unset:
                    timeout = self.recv_timeout
                deadline = _deadline(timeout)
            self.await_message(segment, rc, deadline, timeout)
        return out

    def __iter__(self):
        """Messages as they come, until the Socket is closed."""
        return self

    def __next__(self):
        try:
            return self.receive(True, None)
        except Closed:
            raise StopIteration from None

    # --- the pipe table: for the connector, in the owner, under its lock ---

    def _reserve_pipe(self):
        """The id for a pipe that is being made; 0 when there is no place left."""
        return pipe_reserve(&self.alive().seg)

    def _open_pipe(self, uint32_t pipe, str peer not None, uint32_t peer_id):
        """Lets messages through. peer: name of the segment they go to; empty when the peer discards all."""
        cdef Segment segment = self.alive()
        cdef bytes name = peer.encode("ascii")
        if len(name) > 30:
            raise BadMessage(f"{peer!r} is no name of a segment")
        cdef const char *raw = name
        with nogil:
            pipe_open(&segment.seg, pipe, raw, peer_id)

    def _release_pipe(self, uint32_t pipe):
        cdef Segment segment = self.alive()
        pipe_release(&segment.seg, pipe)

    def _flush(self):
        """Moves what is pending into pipes, as far as there is room. True: nothing is left."""
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef uint32_t turn = self.turn
        cdef int rc
        if ring_depth(&segment.seg.pending) == 0:
            return True
        peers = self.current_peers(segment)
        with nogil:
            rc = flush_pending(&segment.seg, peers.list, &turn, True)
        return rc == RING_OK

    def _resend(self, Segment frozen not None, uint32_t peer_id, at):
        """Sends to others what a peer that is gone had not received of a pipe's to-one messages.

        :param at: where to go on; None at first.
        :returns: where to go on, or None at the end.
        """
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef uint64_t cursor = ring_frozen_start(&frozen.seg.inbox) if at is None else at
        cdef uint32_t turn = self.turn
        cdef int rc
        if ring_depth(&frozen.seg.inbox) == 0:
            return None
        peers = self.current_peers(segment)
        with nogil:
            rc = resend_unreceived(&segment.seg, peers.list, &turn, &frozen.seg.inbox, peer_id, &cursor)
        return None if rc == RING_OK else cursor

    # --- counters ---

    def stats(self):
        """Counters of the Socket, over all its processes, read without stopping anybody.

        ``received`` and ``sent`` messages since its creation, ``depth`` messages and ``used`` bytes in the inbox,
        ``pending`` messages kept while nobody is connected, ``blocked`` waits of peers for room in the inbox,
        ``dropped`` messages given up.
        """
        cdef Segment segment = self.alive()
        cdef uint64_t sent = segment.seg.shared.sent_before
        cdef uint32_t i
        for i in range(1, min(segment.seg.shared.high + 1, 65536)):
            if segment.seg.slots[i].id:
                sent += segment.seg.slots[i].sent
        cdef ring *inbox = &segment.seg.inbox
        return {
            "received": inbox.shared.popped,
            "sent": sent,
            "depth": ring_depth(inbox),
            "used": ring_used(inbox),
            "pending": ring_depth(&segment.seg.pending),
            "blocked": inbox.shared.blocked,
            "dropped": segment.seg.shared.dropped,
        }


cdef void _empty(_Batch *batch) noexcept:
    cdef unsigned i
    for i in range(batch.n):
        if batch.held[i]:
            PyBuffer_Release(&batch.views[i])
    batch.n = 0


# ---------------------------------------------------------------------------------------------------------------------
# files and processes


def is_locked(int fd):
    """Whether some other process holds a lock (``fcntl``) on the file."""
    return bool(platform_is_locked(fd))


def cleanup_add(str path not None):
    """Has a file removed if SIGTERM, SIGHUP or SIGINT ends this process without anybody handling it."""
    c_cleanup_add(os.fsencode(path))


def cleanup_remove(str path not None):
    """Takes back :func:`cleanup_add`."""
    c_cleanup_remove(os.fsencode(path))
