# Claims on batches of tasks.

cdef enum:
    # Of a batch: its number and how many tasks it holds.
    BATCH_HEAD = 8


cdef class Board(_Mapping):
    """Notes which worker has taken which batch of tasks, and how far it is: see claims.h.

    Batches are contents that begin with their number (not 0) and the number of tasks in them, both u32 little-endian.
    """

    cdef claims c
    cdef readonly str name

    def __init__(self):
        raise TypeError("a board is made with Board.create or found with Board.open")

    @staticmethod
    def create(str name not None, uint32_t slots):
        """Makes a board for so many workers.

        :raises OutOfSharedMemory: no memory for it.
        """
        cdef uint64_t size = claims_size(slots)
        if not 1 <= slots <= CLAIMS_MOST:
            raise BadOption(f"a board has 1 to {CLAIMS_MOST} slots, not {slots}")
        fd = create_memory(name, size)
        self = <Board>Board.__new__(Board)
        try:
            self.map(fd)
            if platform_reserve(self.fd, self.base, 0, size) != 0:
                raise _no_memory(size)
            claims_init(self.base, slots)
            self.attach(name)
        except BaseException:
            unlink_memory(name)
            raise
        return self

    @staticmethod
    def open(str name not None):
        """Attaches to one.

        :raises FileNotFoundError: there is none of that name.
        :raises BadMessage: what is there is no board.
        """
        self = <Board>Board.__new__(Board)
        try:
            fd = open_memory(name)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no board {name}") from None
        self.map(fd)
        self.attach(name)
        return self

    cdef int attach(self, str name) except -1:
        if claims_attach(&self.c, self.base, self.size) != RING_OK:
            raise BadMessage(f"{name} holds no board of this version")
        self.name = name
        return 0

    cdef int check(self, uint32_t slot) except -1:
        if slot >= self.c.slots:
            raise BadOption(f"this board has {self.c.slots} slots: there is no slot {slot}")
        return 0

    # --- for the worker of a slot ---

    def ready(self, uint32_t slot):
        """It has finished its initializer."""
        self.check(slot)
        self.c.claims[slot].ready = 1

    def take(self, Endpoint sock not None, uint32_t slot, timeout=_unset):
        """Takes the next batch from a Socket, and notes that in the same step.

        :returns: its content, as bytes; a large one as a writable memoryview of where it lies.
        :raises Timeout, Closed: as ``Socket.recv``.
        """
        cdef Segment segment = sock.alive()
        cdef int64_t deadline = -1
        cdef int rc
        self.check(slot)
        while True:
            taken = self.take_near(&segment.seg.inbox, slot, &rc)
            if rc == TAKE_FAR:
                taken = sock.take_far(segment, False, False, &rc, self, slot)
            if rc == RING_OK:
                return taken
            if deadline < 0:
                deadline = _deadline(sock.recv_timeout if timeout is _unset else timeout)
            sock.await_message(segment, rc, deadline, timeout)

    cdef object take_near(self, ring *r, uint32_t slot, int *rc):
        """One that lies in the ring. None: *rc says why."""
        cdef ring_reader reader
        cdef record rec
        cdef bytes content
        cdef uint8_t *out
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
        except BaseException:
            ring_leave(&reader)
            raise
        out = <uint8_t *>PyBytes_AS_STRING(content)
        with nogil:
            ring_copy(r, &rec, record_content_at(&rec), out, rec.head.length)
            self.take_record(slot, &reader, &rec, out, rec.head.length)
            ring_leave(&reader)
        return content

    cdef void take_record(self, uint32_t slot, ring_reader *reader, const record *rec, const uint8_t *content,
                          uint32_t length) noexcept nogil:
        cdef uint32_t head[2]
        memset(head, 0, BATCH_HEAD)
        if length >= BATCH_HEAD:
            memcpy(head, content, BATCH_HEAD)
        claims_take(&self.c, slot, reader, rec, head[0], min(head[1], <uint32_t>CLAIMS_TASKS))

    def begin(self, uint32_t slot):
        """The running task is done, its outcome sent; begins the next one of the batch.

        :returns: its index; -1: there is no other; -2: the worker shall end.
        """
        self.check(slot)
        return claims_begin(&self.c, slot)

    def loaded(self, uint32_t slot):
        """The function and the arguments of the running task are there: its own time begins."""
        self.check(slot)
        claims_loaded(&self.c, slot)

    def outcome_head(self, uint32_t slot, uint8_t kind, uint8_t flags):
        """What a message about the running task begins with: number of the batch (u32 little-endian, like all), index
        (u16), kind, flags, microseconds of its own time (u32), slot (u32)."""
        cdef uint8_t head[16]
        cdef claim_view seen
        cdef uint32_t took
        cdef uint16_t index
        self.check(slot)
        seen = claims_view_of(&self.c, slot)
        took = <uint32_t>min(max((platform_now() - seen.loaded) // 1000, 0), 0xFFFFFFFF) if seen.loaded else 0
        index = <uint16_t>(seen.next - 1)
        memcpy(head, &seen.number, 4)
        memcpy(head + 4, &index, 2)
        head[6] = kind
        head[7] = flags
        memcpy(head + 8, &took, 4)
        memcpy(head + 12, &slot, 4)
        return PyBytes_FromStringAndSize(<char *>head, 16)

    def may_send(self, uint32_t slot, uint32_t ahead):
        """Whether a task whose outcome has many parts may send one more, being less than so many ahead of the boss."""
        self.check(slot)
        return claims_may_send(&self.c, slot, ahead)

    def sent(self, uint32_t slot):
        """It has sent one part."""
        self.check(slot)
        claims_sent(&self.c, slot)

    # --- for the boss ---

    def allow(self, uint32_t slot, uint32_t parts):
        """So many parts more have been read."""
        self.check(slot)
        claims_allow(&self.c, slot, parts)

    def pass_on(self, Endpoint sock not None, content, timeout=_unset):
        """Sends on a content that :meth:`take` or ``_recv_in_place`` gave as a memoryview: the memory is not copied."""
        cdef message m
        cdef Py_buffer view
        cdef Block block = content.obj
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _describe(&m, SEND_TO_ONE, sock.ttl, view.buf, view.len)
            sock.deliver(&m, 0, timeout, block)
        finally:
            PyBuffer_Release(&view)

    def clear(self, uint32_t slot):
        """Makes a slot ready for a new worker."""
        self.check(slot)
        claims_clear(&self.c, slot)

    def is_ready(self, uint32_t slot):
        """Whether its worker has finished its initializer."""
        self.check(slot)
        return bool(self.c.claims[slot].ready)

    def view(self, uint32_t slot):
        """What its worker has, now: number of the batch (0: none), the first task that it has not begun, the one
        behind its last, when the task before the first began (nanoseconds, monotonic; 0: it does not run), and when
        its own time began (0: its function and arguments are not there yet)."""
        self.check(slot)
        cdef claim_view seen = claims_view_of(&self.c, slot)
        return seen.number, seen.next, seen.end, seen.began, seen.loaded

    def settle(self, Endpoint sock not None):
        """Decides what a worker that was killed while it took a batch has left open."""
        cdef Segment segment = sock.alive()
        with nogil:
            claims_settle(&self.c, &segment.seg.inbox)

    def recall(self, uint32_t slot, uint32_t number):
        """Takes back the tasks of its batch that have not begun.

        :returns: indices of the first one and of the one behind the last; None: there are none.
        """
        cdef uint32_t first, behind
        self.check(slot)
        if not claims_recall(&self.c, slot, number, &first, &behind):
            return None
        return first, behind

    def condemn(self, uint32_t slot, uint32_t number, uint32_t index):
        """Has its worker begin no other task.

        :returns: whether it still runs this one. If not, it may go on.
        """
        self.check(slot)
        return claims_condemn(&self.c, slot, number, index)

    def totals(self):
        """Tasks that all workers have done, and the seconds that these took."""
        cdef uint32_t i
        cdef uint64_t done = 0
        cdef int64_t busy = 0
        for i in range(self.c.slots):
            done += self.c.claims[i].done
            busy += self.c.claims[i].busy
        return done, busy / 1e9
