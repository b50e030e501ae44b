# Connections to peers across a network, and the threads that move their bytes.

# By the name of the outbox: a send in this process may write directly.
cdef object _wires = WeakValueDictionary()

# All that the carrier knows stay there until it says that it has let go of them. This and the next one change under the
# critical section of the carrier.
cdef dict _carried = {}

# By the name of the Socket's segment.
cdef dict _posts = {}

cdef enum:
    TALES = 64


cdef object _REASONS = {
    WIRE_END: "the peer has closed the connection",
    WIRE_CUT: "the connection ended in the middle of a message",
    WIRE_TOO_LONG: "the peer sends a content that is longer than max_recv_content_length, or than the queue takes, or bytes"
    " that are no messages",
    WIRE_NO_MEMORY: "no room was found for a large content of the peer",
    WIRE_CORRUPT: "what stands in shared memory contradicts itself",
    WIRE_CLOSED: "the Socket is closed",
}


cdef str _reason(int reason, int error):
    if reason == WIRE_FAILED:
        return f"the connection broke: {os.strerror(error)}"
    return _REASONS.get(reason, "an unknown reason")


cdef arena *_find_arena(void *context, segment_id wanted) noexcept with gil:
    """For the carrier: an arena that some message refers to."""
    cdef Arena found
    try:
        found = _arena_of(wanted)
    except Exception:
        return NULL
    if found is None:
        return NULL
    (<Wire>context).known.append(found)
    return &found.a


cdef class _Post:
    cdef post p
    cdef Segment segment
    cdef unsigned wires


cdef class Carrier:
    """Carrier()
--

The threads of this process that move the bytes of wires. There is one at a time.

:raises OSError: the system has no descriptor or thread left.
"""

    # `c` is used, and taken away by `stop`, under the critical section of the object. What is done with it there waits for
    # nothing long, and never for a thread of Python's.
    cdef carrier *c
    cdef uint32_t generation

    def __cinit__(self):
        with nogil:
            self.c = carrier_start()
        if self.c == NULL:
            raise OSError(errno, os.strerror(errno))
        self.generation = platform_fork_generation()

    def fileno(self):
        """Readable when :meth:`told` has something to tell."""
        with cython.critical_section(self):
            return carrier_told_fd(self.c) if self.c != NULL else -1

    def told(self):
        """What has happened: a list of ``(wire, what, reason)``. what: "end", "writable", "gone"."""
        with cython.critical_section(self):
            return self.take_told() if self.c != NULL else []

    cdef list take_told(self):
        cdef tale tales[TALES]
        cdef unsigned i, n = carrier_told(self.c, tales, TALES)
        out = []
        for i in range(n):
            wire = _carried.get(<size_t>tales[i].whose)
            if wire is None:
                continue
            if tales[i].what == TOLD_GONE:
                self.forget(<Wire>wire)
                out.append((wire, "gone", ""))
            elif tales[i].what == TOLD_WRITABLE:
                out.append((wire, "writable", ""))
            else:
                out.append((wire, "end", _reason(tales[i].reason, tales[i].error)))
        return out

    def stop(self):
        """Ends the threads."""
        cdef carrier *c
        if self.generation != platform_fork_generation():
            return
        with cython.critical_section(self):
            c = self.c
            self.c = NULL
        if c == NULL:
            return
        with nogil:
            carrier_stop(c)
        _carried.clear()
        _posts.clear()

    cdef int add(self, Wire wire, int fd) except -1:
        cdef int rc
        with cython.critical_section(self):
            if self.c == NULL:
                raise Closed("connections are made no more: the process is about to end")
            post = _posts.get(wire.segment.name)
            if post is None:
                post = _new_post(self, wire.segment)
            wire.post = post
            wire.l.post = &(<_Post>post).p
            wire.l.w.fd = fd
            (<_Post>post).wires += 1
            _carried[<size_t>&wire.l] = wire
            rc = carrier_add(self.c, &wire.l)
            if rc != 0:
                self.forget(wire)
        if rc != 0:
            raise OSError(rc, os.strerror(rc))
        return 0

    cdef int forget(self, Wire wire) except -1:
        """It has let go of a wire."""
        _carried.pop(<size_t>&wire.l, None)
        post, wire.post = wire.post, None
        if post is None:
            return 0
        (<_Post>post).wires -= 1
        if (<_Post>post).wires == 0:
            _posts.pop(wire.segment.name, None)
            carrier_remove_post(self.c, &(<_Post>post).p)
        return 0

    cdef int finish(self, Wire wire, int64_t deadline) except -1:
        with cython.critical_section(self):
            if self.c != NULL:
                carrier_finish(self.c, &wire.l, deadline)
        return 0

    @staticmethod
    def abandon():
        """In a forked child: the threads are the parent's."""
        _carried.clear()
        _posts.clear()
        _wires.clear()


cdef class Wire:
    """Wire(socket, outbox, pipe, *, receives, most, chunk=0, keeps_half=False, ttl=16, arena=None)
--

One end of a connection to a peer across a network. See wire.h.

:param socket: memory of the Socket whose inbox it fills.
:param outbox: memory whose inbox holds what is to be written.
:param pipe: its id in the Socket.
:param receives: False: what comes is thrown away.
:param most: bytes of the longest content that may come.
:param chunk: bytes of a message at most, of a raw connection; 0: framed.
:param keeps_half: raw: when the peer has ended, it still gets messages.
:param arena: for large contents that come; None: they go through the inbox.
"""

    # `carrier` changes under the critical section of the object, `post` under that of the carrier. What `l` holds has
    # locks of its own (wire.h), but what comes is taken in by one thread at a time, which alone touches `blocked`. All
    # else is set before another thread knows the object.
    cdef load l
    cdef Segment segment, outbox
    cdef Arena arena
    cdef list known
    cdef _Post post
    cdef Carrier carrier
    cdef bint ready
    cdef uint32_t generation
    cdef object __weakref__
    cdef public object driver

    def __init__(self, Segment socket not None, Segment outbox not None, uint32_t pipe, *, bint receives, uint32_t most,
                 uint32_t chunk=0, bint keeps_half=False, int ttl=16, Arena arena=None):
        if bell_reserve(&socket.seg) != RING_OK:
            raise _no_memory(8192)
        self.segment = socket
        self.outbox = outbox
        self.arena = arena
        self.known = []
        cdef wire *w = &self.l.w
        w.pipe = pipe
        w.inbox = &socket.seg.inbox if receives else NULL
        w.outbox = &outbox.seg.inbox
        w.socket = socket.seg.id
        w.own = &arena.a if arena is not None else NULL
        w.large = LARGE
        w.most = min(most, <uint32_t>socket.seg.inbox.longest)
        w.chunk = min(min(chunk, <uint32_t>socket.seg.inbox.longest), <uint32_t>(socket.seg.inbox.capacity // 4))
        w.raw_ttl = <uint8_t>ttl
        w.holder = _holder()
        w.find = _find_arena
        w.context = <void *>self
        w.fd = -1
        self.l.keeps_half = keeps_half
        if wire_init(w) != 0:
            raise MemoryError
        self.ready = True
        self.generation = platform_fork_generation()
        _registered(_wires, outbox.name, self)

    def __dealloc__(self):
        # What a child inherits by fork is still its parent's.
        if self.ready and self.generation == platform_fork_generation():
            wire_destroy(&self.l.w)

    @property
    def pipe(self):
        """Its id in the Socket."""
        return self.l.w.pipe

    def start(self, Carrier carrier not None, int fd):
        """Begins to carry.

        :param fd: a non-blocking socket, which now belongs to the carrier. -1: somebody else moves the bytes.
        """
        with cython.critical_section(self):
            self.carrier = carrier
        carrier.add(self, fd)

    def finish(self, linger):
        """Writes what is left and ends the connection.

        :param linger: seconds that this may take; 0: at once.
        """
        cdef Carrier carrier
        with cython.critical_section(self):
            carrier = self.carrier
        if carrier is not None:
            carrier.finish(self, platform_now() + <int64_t>(linger * 1e9) if linger > 0 else 0)

    @property
    def is_idle(self):
        """Nothing is left to be written."""
        cdef bint idle
        with nogil:
            idle = wire_is_idle(&self.l.w)
        return idle

    @property
    def closed(self):
        """Whether it carries nothing any more."""
        return wire_is_closed(&self.l.w)

    def used_arena(self):
        """The arena, if a block of it was taken since the last call."""
        return self.arena if exchange_hint(&self.l.w.arena_used, 0) else None

    @property
    def bytes(self):
        """How many bytes came and went so far."""
        return self.l.w.bytes_in, self.l.w.bytes_out

    # --- for those who move the bytes themselves, from one thread ---

    def receive(self, data):
        """Takes bytes that have come. Gives how many; fewer than all: there is no room, go on with :meth:`go_on`.

        :raises BadMessage: the connection must end: what came is no message, or too long.
        """
        cdef Py_buffer view
        cdef size_t at = 0, room, n
        cdef uint8_t *scratch = _scratch()
        cdef uint8_t *to
        cdef int rc = WIRE_OK
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            while rc == WIRE_OK and at < <size_t>view.len:
                to = wire_space(&self.l.w, scratch, &room)
                n = min(room, <size_t>view.len - at)
                memcpy(to, <char *>view.buf + at, n)
                at += n
                rc = wire_filled(&self.l.w, scratch, n)
        PyBuffer_Release(&view)
        self.check(rc)
        self.blocked = rc == WIRE_BLOCKED
        return at

    cdef readonly bint blocked

    def go_on(self):
        """Tries again to find room for what has come."""
        cdef uint8_t *scratch = _scratch()
        cdef int rc
        with nogil:
            rc = wire_take(&self.l.w, scratch)
        self.check(rc)
        self.blocked = rc == WIRE_BLOCKED

    def end(self):
        """The peer sends nothing more. Gives what that means, in words; None: there is no room to tell, try again."""
        cdef int rc
        with nogil:
            rc = wire_end(&self.l.w)
        return None if rc == WIRE_BLOCKED else _reason(rc, 0)

    def stop(self):
        """Writes nothing any more: what is in the outbox now can be sent to somebody else."""
        with nogil:
            wire_stop(&self.l.w)

    def drop(self):
        """Gives up what was read in part."""
        with nogil:
            wire_drop(&self.l.w)

    cdef int check(self, int rc) except -1:
        if rc == WIRE_OK or rc == WIRE_BLOCKED:
            return 0
        if rc == WIRE_CLOSED:
            raise Closed("the Socket is closed")
        raise BadMessage(_reason(rc, self.l.w.error))

    def gather(self, bint one_message=False):
        """The next bytes to be written: of one message, or of many. Empty: there are none."""
        cdef wire_batch *batch = <wire_batch *>malloc(sizeof(wire_batch))
        cdef char *to
        cdef int i, rc
        if batch == NULL:
            raise MemoryError
        try:
            with nogil:
                pthread_mutex_lock(&self.l.w.writing)
                rc = wire_gather(&self.l.w, batch, 1 if one_message else 0xFFFFFFFF)
                pthread_mutex_unlock(&self.l.w.writing)
            self.check(rc)
            out = PyBytes_FromStringAndSize(NULL, batch.total)
            to = PyBytes_AS_STRING(out)
            for i in range(batch.n):
                memcpy(to, batch.pieces[i].iov_base, batch.pieces[i].iov_len)
                to += batch.pieces[i].iov_len
            return out
        finally:
            free(batch)

    def consume(self, size_t n):
        """So many of these bytes are written."""
        with nogil:
            pthread_mutex_lock(&self.l.w.writing)
            wire_consume(&self.l.w, n)
            pthread_mutex_unlock(&self.l.w.writing)


cdef _Post _new_post(Carrier carrier, Segment segment):
    self = <_Post>_Post.__new__(_Post)
    self.segment = segment
    self.p.rung = &segment.seg.shared.bell
    self.p.waiting = segment.seg.bell_waiting
    carrier_add_post(carrier.c, &self.p)
    _posts[segment.name] = self
    return self


cdef bytearray _scratch_bytes = None


cdef uint8_t *_scratch() except NULL:
    """For those who move bytes in a thread of Python's: there is one."""
    global _scratch_bytes
    if _scratch_bytes is None:
        _scratch_bytes = bytearray(WIRE_SCRATCH)
    cdef char *at = _scratch_bytes
    return <uint8_t *>at
