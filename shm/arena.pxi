# Arenas: blocks of shared memory for large contents.

_DIRECTORY = "/dev/shm"

# One mapping of an arena serves all Sockets of the process.
cdef object _arenas = WeakValueDictionary()

# Gives this process a family of names, whose number then is the holder of its references. Set by the layer above.
cdef object _found_family = None

# Bytes of large contents that were copied; see copied_bytes.
cdef atomic_word _copied


def on_holder_needed(found_family):
    """Sets what is called when this process first holds a block: it must call :func:`set_holder`."""
    global _found_family
    _found_family = found_family


def set_holder(uint64_t family):
    """The number by which arenas know this process; 0 in a fresh child."""
    set_arena_holder(family)


cdef uint64_t _holder() except 0:
    if arena_holder() == 0:
        _found_family()
    return arena_holder()


def copied_bytes():
    """Bytes of large contents that this process has copied into or out of shared memory so far."""
    return atomic_load(&_copied)


def copy(target, source):
    """Copies bytes from one buffer to another of the same size, without the GIL where it takes long.

    :raises BadMessage: the sizes differ.
    """
    cdef Py_buffer to, of
    PyObject_GetBuffer(target, &to, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(source, &of, PyBUF_SIMPLE)
        try:
            if to.len != of.len:
                raise BadMessage(f"{of.len} bytes do not go into a buffer of {to.len}")
            _copy_large(to.buf, of.buf, of.len)
        finally:
            PyBuffer_Release(&of)
    finally:
        PyBuffer_Release(&to)


cdef void _copy_large(void *to, const void *of, size_t n):
    with nogil:
        platform_copy(to, of, n)
    atomic_fetch_add(&_copied, n)


cdef bytes _new_bytes(Py_ssize_t n):
    """Bytes to be filled. Large ones on large pages: they come fresh from the system each time."""
    content = PyBytes_FromStringAndSize(NULL, n)
    if n >= LARGE_PAGES:
        platform_large_pages(PyBytes_AS_STRING(content), n)
    return content


cdef segment_id _id_of(str name) except *:
    """What ``/ms-<12 hex digits>-<number>`` stands for; zeros for any other name."""
    cdef segment_id known
    known.family = 0
    known.number = 0
    family, _, number = name[4:].partition("-")
    if name.startswith("/ms-") and len(family) == 12 and number.isdecimal() and len(number) < 10:
        known.family = int(family, 16)
        known.number = int(number)
    return known


cdef str _name_of(segment_id known):
    return f"/ms-{known.family:012x}-{known.number}"


cdef class Arena(_Mapping):
    """The blocks of one Socket, mapped into this process."""

    # All is set before anybody else knows the object; what the arena holds has a lock of its own (arena.h).
    cdef arena a
    cdef readonly str name
    cdef bytes path

    def __init__(self):
        raise TypeError("an arena is made with Arena.obtain or found with Arena.open")

    @staticmethod
    def name_for(str segment not None):
        """The name of a Socket's arena."""
        return segment + "a"

    @staticmethod
    def obtain(str segment not None, uint64_t limit):
        """The arena of a Socket, made if there is none yet. Any process that shares the Socket may do it.

        :param limit: bytes that may be in use.
        :raises OutOfSharedMemory: no memory for it.
        """
        name = Arena.name_for(segment)
        while True:
            try:
                return Arena.open(name)
            except FileNotFoundError:
                # Made under another name first: what others find under its own is complete.
                draft = f"{name}{os.urandom(4).hex()}"
                _draft_arena(draft, _id_of(segment), limit)
                try:
                    os.link(_DIRECTORY + draft, _DIRECTORY + name)
                except FileExistsError:
                    pass
                finally:
                    unlink_memory(draft)

    @staticmethod
    def open(str name not None):
        """Attaches to the arena of a Socket of any process.

        :raises FileNotFoundError: there is none.
        :raises BadMessage: what is there is no arena.
        """
        known = _arenas.get(name)
        if known is not None:
            return known
        try:
            fd = open_memory(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no arena {name} ({error})") from None
        self = <Arena>Arena.__new__(Arena)
        self.map(fd)
        if arena_attach(&self.a, self.base, self.size, self.fd) != RING_OK:
            raise BadMessage(f"{name} holds no arena of this version")
        self.name = name
        self.path = os.fsencode(_DIRECTORY + name)
        return _registered(_arenas, name, self)

    @staticmethod
    def mapped():
        """The arenas that this process has mapped."""
        return _all_of(_arenas)

    # --- what is in use ---

    @property
    def used(self):
        """Bytes of contents in use, in whole units of 64 KiB."""
        return self.a.shared.used * ARENA_UNIT

    @property
    def backed(self):
        """Bytes that have memory behind them."""
        return self.a.shared.backed * ARENA_UNIT

    @property
    def closed(self):
        """Whether its Socket is closed."""
        return arena_is_closed(&self.a)

    # --- giving back ---

    def rest(self):
        """Gives memory that is not needed any more back to the system. True: there may be more to give back later."""
        cdef uint64_t holder = _holder()
        cdef bint more
        with nogil:
            more = arena_rest(&self.a, holder)
        return more

    def trim(self):
        """Gives all memory that is not in use back to the system."""
        cdef uint64_t holder = _holder()
        with nogil:
            arena_trim(&self.a, 0, holder)

    def close(self):
        """The Socket is closed: whoever gives back the last block removes the arena. True: it is removed."""
        cdef bint empty
        with nogil:
            arena_close(&self.a)
            empty = arena_is_empty(&self.a)
        if empty:
            self.unlink()
        return empty

    def unlink(self):
        """Removes the name; who has it mapped keeps the memory. One that is gone is no error."""
        # Not by a module: the last block may be given back at the interpreter's end, when there are none any more.
        c_unlink(PyBytes_AS_STRING(self.path))

    # --- what the dead held ---

    def sightings(self):
        """The references in use."""
        cdef unsigned n, i, most = self.a.shared.live + 64
        cdef sighting *seen
        if most > ARENA_REFERENCES:
            most = ARENA_REFERENCES
        seen = <sighting *>malloc(most * sizeof(sighting))
        if seen == NULL:
            raise MemoryError
        try:
            with nogil:
                n = arena_list(&self.a, seen, most)
            return [_new_sighting(&seen[i]) for i in range(n)]
        finally:
            free(seen)

    def reclaim(self, Sighting seen not None):
        """Gives back a reference, if nothing has happened to it since it was seen."""
        with nogil:
            arena_reclaim(&self.a, &seen.s)

    def settle(self, Segment socket not None, bint pending, list seen not None):
        """The same for those that were sent to a ring of this Socket, as far as it has no record of them."""
        cdef sighting *row = <sighting *>malloc(len(seen) * sizeof(sighting) + 1)
        cdef ring *r = &socket.seg.pending if pending else &socket.seg.inbox
        cdef unsigned n = 0
        cdef Sighting one
        if row == NULL:
            raise MemoryError
        for one in seen:
            row[n] = one.s
            n += 1
        with nogil:
            arena_settle(&self.a, r, row, n)
        free(row)

    def forget(self, str segment not None, str via not None):
        """What the Socket ``via`` had sent to that Socket, and was not received, has been sent to others."""
        cdef segment_id gone = _id_of(segment)
        cdef segment_id sender = _id_of(via)
        with nogil:
            arena_forget(&self.a, gone, sender)


cdef Arena _arena_of(segment_id socket):
    """That of a Socket which a message refers to. None: it is gone."""
    try:
        return Arena.open(Arena.name_for(_name_of(socket)))
    except (FileNotFoundError, BadMessage):
        return None


cdef int _draft_arena(str name, segment_id socket, uint64_t limit) except -1:
    cdef _Mapping draft = _Mapping()
    fd = create_memory(name, arena_size(limit))
    try:
        draft.map(fd)
        _check_made(arena_init(draft.base, draft.fd, limit, socket), ARENA_UNIT)
    except BaseException:
        unlink_memory(name)
        raise
    return 0


cdef class Sighting:
    """A reference to a block, as it was seen."""

    cdef sighting s

    @property
    def holder(self):
        """The family of the process that has it, or has sent it."""
        return self.s.holder

    @property
    def is_held(self):
        """Somebody writes or reads it; otherwise it was sent."""
        return self.s.is_held

    @property
    def ring(self):
        """The segment that it was sent to last; None: nowhere."""
        return None if self.s.where == WHERE_NOWHERE else _name_of(self.s.ring)

    @property
    def is_pending(self):
        """That is, to the messages which the segment's Socket keeps until somebody is connected."""
        return self.s.where == WHERE_PENDING

    @property
    def via(self):
        """The segment of the Socket that sent it there."""
        return _name_of(self.s.via)


cdef Sighting _new_sighting(const sighting *seen):
    self = <Sighting>Sighting.__new__(Sighting)
    self.s = seen[0]
    return self


# ---------------------------------------------------------------------------------------------------------------------
# blocks that this process holds


cdef class Block:
    """A block of an arena, given back when nobody refers to it any more. Its buffer is the content."""

    # `held` is changed by the one who makes it, before anybody else knows the object, and at its end. All else is set
    # once.
    cdef Arena arena
    cdef block b
    cdef uint32_t generation
    cdef bint held, writable

    def __init__(self):
        raise TypeError("a block comes with a message or a loan")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.b.data, self.b.length, not self.writable, flags)

    def __dealloc__(self):
        self.give_back()

    cdef void give_back(self) noexcept:
        cdef bint last
        # What a child inherits by fork is still its parent's.
        if not self.held or self.generation != platform_fork_generation():
            return
        self.held = False
        with nogil:
            last = arena_release(&self.arena.a, &self.b)
        if last:
            self.arena.unlink()

    cdef Block share(self):
        """Another reference to the same content."""
        cdef uint64_t holder = _holder()
        cdef block other
        cdef int rc
        with nogil:
            rc = arena_share(&self.arena.a, &self.b, holder, &other)
        if rc == RING_NO_MEMORY:
            raise _no_memory(self.b.length)
        if rc != RING_OK:
            raise BadMessage(_CORRUPT)
        return _new_block(self.arena, &other)

    cdef void describe(self, message *m, uint8_t *note_bytes) noexcept:
        """Makes it the content of a message. note_bytes: NOTE_SIZE of them."""
        cdef note n
        n.arena = self.arena.a.id
        n.reference = self.b.reference
        n.generation = self.b.generation
        note_encode(note_bytes, &n)
        m.note = note_bytes
        m.content = self.b.data
        m.length = self.b.length


cdef Block _new_block(Arena arena, const block *b):
    self = <Block>Block.__new__(Block)
    self.arena = arena
    self.b = b[0]
    self.generation = platform_fork_generation()
    self.held = True
    return self


# ---------------------------------------------------------------------------------------------------------------------
# loans


cdef class Loan:
    """Memory to write a content into, that is then sent without a copy. See ``Socket.loan``.

    Used as a context manager, it is given back at the end unless it has been sent.
    """

    # `_buffer`, `block` and `is_busy` change under the critical section of the object. `socket` is set once.
    cdef Endpoint socket
    cdef Block block
    cdef object _buffer
    cdef bint is_busy

    @property
    def buffer(self):
        """A writable memoryview. It ends when the loan is sent or given back: do not write by another view of it then."""
        with cython.critical_section(self):
            return self._buffer

    def send(self, timeout=_unset):
        """Sends it to one peer. Arguments and errors: see ``Socket.send``; after an error it can be sent again."""
        self.deliver(SEND_TO_ONE, b"", timeout)

    def send_all(self, timeout=_unset):
        """Sends it to every peer. See ``Socket.send_all``."""
        return self.deliver(SEND_TO_ALL, b"", timeout)

    def send_to(self, destination, timeout=_unset):
        """Sends it along a path. See ``Socket.send_to``."""
        self.deliver(SEND_TO_DEST, _path_to(destination), timeout)

    cdef int deliver(self, int send_type, bytes path, object timeout) except -1:
        cdef message m
        cdef Py_buffer view
        cdef Block block = self.begin(&view)
        cdef bint is_sent = False
        cdef int sent
        try:
            _describe(&m, send_type, self.socket.ttl, view.buf, view.len)
            _set_paths(&m, b"", path)
            sent = self.socket.deliver_by_type(&m, timeout, block)
            is_sent = True
        finally:
            with cython.critical_section(self):  # a memoryview counts its users without any lock of its own
                PyBuffer_Release(&view)
                self.is_busy = is_sent  # then nobody else begins before it is given back
        self.give_back()
        return sent

    cdef Block begin(self, Py_buffer *view):
        """Only one thread sends it: its block, if it lies in one, and its content, kept until the view is released."""
        with cython.critical_section(self):
            if self._buffer is None:
                raise BadMessage("this loan has been sent or given back: take another one")
            if self.is_busy:
                raise BadMessage("this loan is just being sent by another thread: take another one")
            PyObject_GetBuffer(self._buffer, view, PyBUF_SIMPLE)
            self.is_busy = True
            return self.block

    def give_back(self):
        """Ends the loan, unless it has been sent. Twice is no error."""
        with cython.critical_section(self):
            block, self.block = self.block, None
            buffer, self._buffer = self._buffer, None
            if buffer is not None:
                _let_go(buffer)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.give_back()


cdef void _let_go(object view) noexcept:
    """Ends a memoryview; what others made of it keeps the memory as long as they need it."""
    try:
        view.release()
    except BufferError:
        pass
