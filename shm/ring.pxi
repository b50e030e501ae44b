# Taking from a ring, and a ring by itself.
#
# With the GIL held, never waiting for the ring's lock. A long content is copied without the GIL, and then the lock is
# given back before the GIL is asked for again.


# Besides what ring.h gives: the next content lies in an arena, which is taken with _take_far.
cdef enum:
    TAKE_FAR = 200
    # Nothing was taken, but it is worth another look at once.
    RING_AGAIN = 201


# Nothing that the garbage collector knows is made with a ring's lock held, or it might run anything: bytes only.


cdef inline int _fill(const ring *r, const record *rec, Message msg) except -1:
    """All but the content, with the hop to here counted."""
    msg.flags = rec.head.flags
    msg.ttl = rec.head.ttl - 1
    msg.pipe_id = rec.pipe
    msg.is_remote = rec.head.is_remote
    return _read_paths(r, rec, msg)


cdef inline int _front(ring_reader *reader, record *rec) noexcept:
    """The next record that is not spent. Spent ones whose content is far are left to _take_far as well."""
    cdef int rc
    while True:
        rc = ring_front(reader, rec)
        if rc != RING_OK or rec.is_far or not _is_spent(rec):
            return rc
        ring_pop(reader, rec)


cdef inline int _front_note(ring_reader *reader, record *rec, note *out) noexcept:
    """The next record if its content lies in an arena, and the note of that; RING_AGAIN: it does not."""
    cdef int rc = _front(reader, rec)
    if rc == RING_OK and not record_note(reader.r, rec, out):
        return RING_AGAIN
    return rc


cdef object _take_one(ring *r, bint as_message, int *rc):
    """The next record as bytes or Message. None: *rc says why."""
    cdef ring_reader reader
    cdef record rec
    cdef bytes content
    cdef char *out
    cdef Message msg = None
    if as_message and ring_depth(r):
        msg = <Message>Message.__new__(Message)
    rc[0] = ring_enter(r, &reader, False)
    if rc[0] != RING_OK:
        return None
    rc[0] = _front(&reader, &rec)
    if rc[0] == RING_OK and rec.is_far:
        rc[0] = TAKE_FAR
    if rc[0] != RING_OK:
        ring_leave(&reader)
        return None
    try:
        content = PyBytes_FromStringAndSize(NULL, rec.head.length)
        taken = content
        if as_message:
            if msg is None:
                msg = <Message>Message.__new__(Message)
            msg._content = None if is_end_of_raw(&rec.head) else content
            _fill(r, &rec, msg)
            taken = msg
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
            if rc != RING_OK or rec.is_far or rec.head.length >= LONG_COPY:
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

    def __init__(self):
        raise TypeError("a ring is made with Ring.create or found with Ring.open")

    @staticmethod
    def create(str name not None, capacity=1 << 20, limit=None):
        """Makes a ring under a new name.

        :param name: of the POSIX shared memory, like ``/jobs``. Whoever creates it unlinks it.
        :param capacity: bytes, rounded up to a power of two (4 KiB to 8 GiB). A record takes 16 bytes and its content.
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
        fd = create_memory(name, RING_HEADER + size)
        try:
            self.mapping = _Mapping()
            self.mapping.map(fd)
            if platform_reserve(self.mapping.fd, self.mapping.base, 0, RING_HEADER) != 0:
                raise _no_memory(RING_HEADER)
            if ring_init(<ring_shared *>self.mapping.base, size, limit or 0x7FFFFFFF, 0xFFFFFFFF) != 0:
                raise NotSupported("this system has no robust process-shared mutexes")
            self.attach(name)
        except BaseException:
            unlink_memory(name)
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
            fd = open_memory(name)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no ring {name}: create it first, or it was unlinked") from None
        self.mapping = _Mapping()
        self.mapping.map(fd)
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
                ring_wait_room(&self.r, &m, look)
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
                try:
                    one = _take_one(&self.r, False, &rc)
                except MemoryError:
                    if not out:
                        raise
                    break  # what was taken is not lost
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
        """Whether somebody has closed it, for all processes."""
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
        unlink_memory(self.name)

    def __repr__(self):
        return f"<Ring {self.name} depth={self.depth} used={self.used} of {self.capacity} bytes>"
