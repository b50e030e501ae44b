# The Socket's data path.

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

    # Any number of threads use it at a time, and one may close it meanwhile. `segment` and `peers` change under the
    # critical section of the object: who uses what is behind them takes a reference with `memory` or `known_peers`
    # first, and so nothing is unmapped in a running call. `guard_fd` is set once, under the same. `turn` is a hint. All
    # else is set before anybody else knows the object.
    cdef Segment segment
    cdef _Peers peers
    cdef atomic_hint turn
    cdef uint32_t generation
    cdef str guard
    cdef bint here, owned
    cdef int guard_fd
    cdef bint refuses_send, refuses_recv
    cdef bint best_effort
    cdef int ttl
    cdef object send_timeout, recv_timeout
    cdef uint64_t arena_limit

    def __cinit__(self):
        self.guard_fd = -1

    def __dealloc__(self):
        if self.guard_fd >= 0:
            c_close(self.guard_fd)

    def _attach(self, Segment segment not None, str guard, *, bint here, bint owned, bint no_send, bint no_recv, bint best_effort,
                int ttl, send_timeout, recv_timeout, uint64_t arena_limit):
        """Takes the memory of a Socket, with its options, and begins to use it."""
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
        self.arena_limit = arena_limit
        self.peers = _read_peers(segment, None, {})

    def _detach(self):
        """Gives up this handle. Threads that are just in it keep what they use until they return."""
        with cython.critical_section(self):
            segment, self.segment = self.segment, None
            peers, self.peers = self.peers, None

    @cython.final
    cdef inline Segment memory(self):
        """None: this handle is closed."""
        with cython.critical_section(self):
            return self.segment

    @cython.final
    cdef inline _Peers known_peers(self):
        """The list of peers, be it up to date or not. None: this handle is closed."""
        with cython.critical_section(self):
            return self.peers

    cdef bint exchange_peers(self, _Peers before, _Peers after):
        """False: another thread was faster."""
        with cython.critical_section(self):
            if self.peers is not before:
                return False
            self.peers = after
        return True

    @property
    def closed(self):
        """Whether this handle, or the Socket for all, is closed."""
        segment = self.memory()
        return segment is None or segment_is_closed(&segment.seg)

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
        cdef int fd
        with cython.critical_section(self):
            fd = self.guard_fd
        if fd < 0:
            try:
                fd = self.keep_guard(os.open(self.guard, os.O_RDWR | os.O_CLOEXEC))
            except FileNotFoundError:
                return False
            except OSError:  # no descriptor is left: it cannot be told, so believe that it lives
                return True
        return platform_is_locked(fd)

    cdef int keep_guard(self, int fd) noexcept:
        """Which one is used from now on: it may be that of another thread."""
        cdef int kept
        with cython.critical_section(self):
            if self.guard_fd < 0:
                self.guard_fd = fd
            kept = self.guard_fd
        if kept != fd:
            c_close(fd)
        return kept

    cdef Segment alive(self):
        segment = self.memory()
        if segment is None:
            raise Closed("this Socket is closed: make a new one")
        return segment

    cdef Segment sending(self):
        """The same for those who send."""
        segment = self.alive()
        if self.refuses_send:
            raise NotSupported("this Socket was made with no_send=True: it only receives")
        return segment

    cdef int look_around(self, Segment segment) except -1:
        """What a wait does between its slices: signals, and whether handle and owner are still there."""
        PyErr_CheckSignals()
        if self.memory() is not segment:  # another thread has closed this handle
            raise self.closed_error()
        if not self.owner_lives():
            segment.close()
        return 0

    cdef object closed_error(self):
        if self.memory() is None or self._is_owner:
            return Closed("this Socket was closed: make a new one")
        if self.owner_lives():
            return Closed("this Socket was closed by the process that made it")
        return Closed("the process that made this Socket has ended, and the Socket with it")

    # --- failures ---

    cdef object failure(self, Segment segment, int rc, uint64_t length):
        if rc == RING_CLOSED:
            return self.closed_error()
        if rc == RING_TOO_LONG:
            return self.too_long(segment, length)
        if rc == RING_NO_MEMORY:
            return _no_memory(length)
        return BadMessage(_CORRUPT)

    cdef object too_long(self, Segment segment, uint64_t length):
        cdef uint64_t most = self.longest(segment)
        remedy = "max_recv_content_length" if self.arena_limit else "recv_queue_bytes, or let this one have an arena_limit"
        return ContentTooLong(
            f"a content of {length} bytes was given, the receiving queues take at most {most}; give the receiving Socket"
            f" a larger {remedy}"
        )

    cdef uint64_t longest(self, Segment segment):
        """Bytes of the largest content that some peer takes; without peers, that can be kept."""
        cdef uint64_t most = 0
        cdef _Peer one
        cdef _Peers peers = self.open_peers()
        for one in peers.by_id.values():
            if one.p.inbox != NULL:
                most = max(most, self.longest_of(one.p.inbox))
        return most or self.longest_of(&segment.seg.pending)

    cdef uint64_t longest_of(self, ring *r):
        return r.longest if self.arena_limit else min(<uint64_t>r.longest, ring_max_message(r) - META_SIZE)

    cdef object no_room(self, timeout):
        cdef _Peers peers = self.known_peers()
        if peers is not None and not peers.list.receivers:
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
            self.deliver(&m, 0, timeout, None)
            return
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, SEND_TO_ONE, self.ttl, view.buf, view.len)
            self.deliver(&m, 0, timeout, None)
        finally:
            PyBuffer_Release(&view)

    cdef int deliver(self, message *m, uint32_t pipe, object timeout, Block content) except -1:
        """One message to one peer, or to the peer of a pipe. content: None, or the block that it lies in."""
        cdef Segment segment = self.sending()
        cdef _Peers peers
        cdef uint32_t turn
        cdef int rc
        if m.length < LONG_COPY and content is None:
            peers = self.open_peers()
            if pipe:
                rc = send_by_pipe(&segment.seg, peers.list, pipe, m, False)
            else:
                turn = self.turn_now()
                rc = send_to_one(&segment.seg, peers.list, &turn, m, False)
                self.turn_next(turn)
            if rc == RING_OK:
                return 0
        if timeout is _unset:
            timeout = self.send_timeout
        cdef int64_t deadline = _deadline(timeout)
        if content is not None:
            return self.push(segment, m, pipe, deadline, timeout, content.share())
        if m.length >= LARGE and self.arena_limit:
            return self.push_large(segment, m, pipe, deadline, timeout)
        return self.push(segment, m, pipe, deadline, timeout, None)

    cdef int push_large(self, Segment segment, const message *m, uint32_t pipe, int64_t deadline,
                        object timeout) except -1:
        """Puts the content into the arena first, unless it can go from where it is."""
        cdef uint32_t turn = self.turn_now()
        cdef _Peers peers = self.current_peers(segment)
        cdef int rc
        with nogil:
            rc = send_directly(&segment.seg, peers.list, pipe, &turn, m)
        self.turn_next(turn)
        if rc == SEND_WRITTEN:
            return 0
        self.await_taker(segment, m, pipe, deadline, timeout)
        return self.push(segment, m, pipe, deadline, timeout, self.new_content(segment, m, deadline, timeout))

    cdef int push(self, Segment segment, const message *given, uint32_t pipe, int64_t deadline, object timeout,
                  Block content) except -1:
        """Waits for room, as long as that may take. Gives the reference to the content away."""
        cdef uint8_t note_bytes[NOTE_SIZE]
        cdef message m = given[0]
        cdef _Peers peers
        cdef uint32_t turn
        cdef int rc
        if content is not None:
            content.describe(&m, note_bytes)
        while True:
            peers = self.current_peers(segment)
            turn = self.turn_now()
            with nogil:
                if pipe:
                    rc = send_by_pipe(&segment.seg, peers.list, pipe, &m, True)
                else:
                    rc = send_to_one(&segment.seg, peers.list, &turn, &m, True)
            self.turn_next(turn)
            if rc == RING_OK and content is not None:
                content.held = False
            if rc == RING_OK or rc == SEND_DISCARDED or rc == SEND_WRITTEN:
                return 0
            if rc == RING_FULL:
                self.await_room(segment, peers, pipe, &m, deadline, timeout)
            elif rc == RING_TOO_LONG and content is None and self.arena_limit:
                # Small, but larger than the queue: that holds notes of any content.
                content = self.new_content(segment, &m, deadline, timeout)
                content.describe(&m, note_bytes)
            else:
                self.recover(segment, rc, pipe, m.length)

    cdef int recover(self, Segment segment, int rc, uint32_t pipe, uint64_t length) except -1:
        """After a send that failed for another reason than room: it can be tried again, or this raises."""
        if rc == SEND_STALE:
            return 0
        if rc == SEND_NO_ARENA:
            return self.learn_arena(segment, send_missing_arena())
        if rc == SEND_NO_PATH:
            raise BrokenPath(f"pipe {pipe} of the destination is gone, or never was: its peer has disconnected")
        raise self.failure(segment, rc, length)

    cdef _Peers current_peers(self, Segment segment):
        """The list of peers as the pipe table now is."""
        cdef _Peers peers = self.open_peers()
        cdef _Peers newer
        while peers.list.version != segment_version(&segment.seg):
            newer = _read_peers(segment, peers, peers.known)
            peers = newer if self.exchange_peers(peers, newer) else self.open_peers()
        return peers

    cdef _Peers open_peers(self):
        """The same, but it may be of an earlier version: sends find that out."""
        peers = self.known_peers()
        if peers is None:  # another thread has closed it meanwhile
            raise self.closed_error()
        return peers

    @cython.final
    cdef inline uint32_t turn_now(self):
        return load_hint(&self.turn, memory_order_relaxed)

    @cython.final
    cdef inline void turn_next(self, uint32_t turn) noexcept:
        if load_hint(&self.turn, memory_order_relaxed) != turn:
            store_hint(&self.turn, turn, memory_order_relaxed)

    cdef int await_room(self, Segment segment, _Peers peers, uint32_t pipe, const message *m, int64_t deadline,
                        object timeout) except -1:
        cdef int rc
        if self.best_effort:
            atomic_fetch_add(&segment.seg.shared.dropped, 1)
            raise MessageDropped("no peer has room, and this Socket sends by best effort: the message was dropped")
        if deadline <= platform_now():
            raise self.no_room(timeout)
        cdef int64_t look = _look_at(deadline, not self.is_here())
        with nogil:
            rc = wait_to_send(&segment.seg, peers.list, pipe, m, look)
        if rc != RING_OK:
            self.look_around(segment)
        return PyErr_CheckSignals()

    cdef int await_taker(self, Segment segment, const message *m, uint32_t pipe, int64_t deadline,
                         object timeout) except -1:
        """Waits until somebody has room for a large message, before its content is copied: so few blocks are in use."""
        cdef message far = m[0]
        cdef _Peers peers
        far.note = far.content  # that it is one is all that counts
        while True:
            peers = self.current_peers(segment)
            if may_send(&segment.seg, peers.list, pipe, &far):
                return 0
            self.await_room(segment, peers, pipe, &far, deadline, timeout)

    # --- large contents ---

    cdef Block new_content(self, Segment segment, const message *m, int64_t deadline, object timeout):
        """A block with a message's content."""
        content = self.new_block(segment, m.length, deadline, timeout)
        _copy_large(content.b.data, m.content, m.length)
        return content

    cdef Block new_block(self, Segment segment, uint64_t length, int64_t deadline, object timeout):
        """A block to write into. Waits until there is room in the arena."""
        cdef Arena arena = self.own_arena(segment)
        cdef int64_t patience = platform_now() + PATIENCE_NS
        cdef uint64_t holder
        cdef uint32_t ticket
        cdef block b
        cdef int rc
        while True:
            holder = _holder()
            ticket = arena_arm(&arena.a)
            with nogil:
                rc = arena_take(&arena.a, <uint32_t>length, holder, &b)
            if rc == RING_OK:
                content = _new_block(arena, &b)
                rc = _back(content)
                if rc == RING_OK:
                    self._arena_used(arena)
                    return content
                content.give_back()
            if rc != RING_FULL and rc != RING_NO_MEMORY:
                raise self.failure(segment, rc, length)
            self._reclaim(arena)
            self.await_memory(segment, arena, ticket, length, rc, patience, deadline, timeout)

    cdef int await_memory(self, Segment segment, Arena arena, uint32_t ticket, uint64_t length, int rc,
                          int64_t patience, int64_t deadline, object timeout) except -1:
        """Until somebody gives back a block of the arena. Other memory of the system is waited for a short time."""
        cdef int64_t now = platform_now()
        if rc == RING_NO_MEMORY and (arena.a.shared.live == 0 or now >= patience or now >= deadline):
            raise _no_memory(length)
        if self.best_effort:
            atomic_fetch_add(&segment.seg.shared.dropped, 1)
            raise MessageDropped("the arena is full, and this Socket sends by best effort: the message was dropped")
        if now >= deadline:
            raise Timeout(
                f"the arena had no room for {length} bytes within {timeout} s: {arena.used} bytes are still in use by"
                f" receivers, {self.arena_limit} is the limit (arena_limit)"
            )
        cdef int64_t look = _look_at(deadline, True)
        with nogil:
            arena_wait(&arena.a, ticket, look)
        self.look_around(segment)
        return 0

    cdef Arena own_arena(self, Segment segment):
        """Made when it is first needed."""
        arena = self.open_peers().known.get((segment.seg.id.family, segment.seg.id.number))
        if arena is None:
            arena = Arena.obtain(segment.name, self.arena_limit)
            if segment_is_closed(&segment.seg):  # and who has closed it may have looked for the arena before
                arena.close()
                raise self.closed_error()
            self.remember_arena(segment, segment.seg.id, arena)
        return arena

    def _arena_for_wires(self):
        """The arena for large contents that come over networks; None when there shall be none."""
        return self.own_arena(self.alive()) if self.arena_limit else None

    cdef Arena known_arena(self, Segment segment, segment_id wanted):
        """The arena that a message refers to; None when it is gone."""
        key = (wanted.family, wanted.number)
        cdef _Peers peers = self.known_peers()
        if peers is not None and key in peers.known:
            return peers.known[key]
        arena = _arena_of(wanted)
        self.remember_arena(segment, wanted, arena)
        return arena

    cdef int learn_arena(self, Segment segment, segment_id wanted) except -1:
        """Maps an arena that a message refers to. One that is gone is remembered as that."""
        if wanted.family == 0:
            _holder()
            return 0
        return self.remember_arena(segment, wanted, _arena_of(wanted))

    cdef int remember_arena(self, Segment segment, segment_id its, Arena arena) except -1:
        cdef _Peers peers, newer
        while True:
            peers = self.open_peers()
            # Those that are closed are found again by their name, should there be another message of theirs.
            known = {key: one for key, one in peers.known.items() if one is not None and not one.closed}
            known[(its.family, its.number)] = arena
            newer = _read_peers(segment, peers, known)
            if self.exchange_peers(peers, newer):
                return 0

    def _own_arena(self):
        """This Socket's arena, or None if it never had one."""
        cdef Segment segment = self.alive()
        try:
            return Arena.open(Arena.name_for(segment.name))
        except FileNotFoundError:
            return None

    def _arena_used(self, Arena used):
        """Called when a block was taken: for the layer above, which looks after the arena."""

    def _reclaim(self, Arena full):
        """Called when the arena is full: for the layer above, which finds out who is dead."""

    def loan(self, Py_ssize_t nbytes, timeout=_unset):
        """Memory to write a content into, that is then sent without a copy.

        ``with sock.loan(n) as loan: fill(loan.buffer); loan.send()``

        :param nbytes: size of the content.
        :param timeout: seconds to wait for room in the arena; None waits for ever, 0 never waits.
        :returns: a :class:`Loan` with a writable ``buffer`` (its bytes are those of an earlier use, not zeros), and
            ``send``, ``send_all`` and ``send_to``.
        :raises OutOfSharedMemory: no memory for it.
        :raises Timeout, MessageDropped, Closed: as ``send``.
        """
        cdef Segment segment = self.sending()
        cdef Loan loan = <Loan>Loan.__new__(Loan)
        if nbytes < 0:
            raise BadOption(f"a loan has 0 or more bytes, not {nbytes}")
        _check_length(nbytes)
        loan.socket = self
        if nbytes < LARGE or not self.arena_limit:
            loan._buffer = memoryview(bytearray(nbytes))
            return loan
        if timeout is _unset:
            timeout = self.send_timeout
        loan.block = self.new_block(segment, nbytes, _deadline(timeout), timeout)
        loan.block.writable = True
        loan._buffer = memoryview(loan.block)
        return loan

    # --- sending to others ---

    def send_to(self, destination, content, timeout=_unset):
        """Sends along a path of pipes, as a received message's ``source`` gives it.

        :param destination: pipe ids, nearest first.
        :param content: anything with the buffer protocol. None, to a raw pipe: nothing more is sent there.
        :param timeout: seconds; None waits for ever, 0 never waits.
        :raises BrokenPath: the first pipe is gone. (Later ones are found by the nodes they belong to.)
        :raises Timeout, MessageDropped, ContentTooLong, Closed: as ``send``.
        """
        cdef message m
        cdef Py_buffer view
        cdef bytes path = _path_to(destination)
        PyObject_GetBuffer(b"" if content is None else content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, SEND_TO_DEST | (FLAGS_RAW_END if content is None else 0), self.ttl, view.buf, view.len)
            _set_paths(&m, b"", path)
            self.deliver_by_type(&m, timeout, None)
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
            return self.deliver_to_all(&m, timeout, None)
        finally:
            PyBuffer_Release(&view)

    cdef int deliver_to_all(self, message *m, object timeout, Block content, uint32_t skip=0) except -1:
        """To each peer, but for the one of pipe `skip`."""
        cdef Segment segment = self.sending()
        cdef int64_t deadline
        cdef int sent = 0
        if timeout is _unset:
            timeout = self.send_timeout
        deadline = _deadline(timeout)
        pipes = [number for number in self.current_peers(segment).by_id if number != skip]
        if content is None and m.length >= LARGE and self.arena_limit and pipes:
            content = self.new_content(segment, m, deadline, timeout)
        too_long = None
        try:
            later = self.offer(segment, m, pipes, content, &sent)
        except ContentTooLong as error:
            too_long, later = error, error.without_room
        if self.best_effort:
            atomic_fetch_add(&segment.seg.shared.dropped, len(later))
            later = []
        for number in later:
            try:
                self.push(segment, m, number, deadline, timeout, content.share() if content is not None else None)
                sent += 1
            except BrokenPath:
                pass
            except Timeout as error:
                error.sent = sent
                raise
        if too_long is not None:
            raise too_long
        return sent

    cdef list offer(self, Segment segment, const message *m, object pipes, Block content, int *sent):
        """To those of the pipes that have room; gives the others, but for those that are gone.

        :raises ContentTooLong: for some, its ``refused``, when all others were tried; ``without_room`` are the others.
        """
        cdef int rc
        cdef list later = []
        cdef list refused = None
        for number in pipes:
            rc = self.try_pipe(segment, m, number, content)
            if rc == RING_OK:
                sent[0] += 1
            elif rc == RING_FULL:
                later.append(number)
            elif rc == RING_TOO_LONG:
                refused = [*(refused or ()), number]
        if refused is not None:
            error = self.too_long(segment, m.length)
            error.refused, error.without_room = refused, later
            raise error
        return later

    def _offer(self, pipes, content, timeout=0, int flags=0, bytes head=b""):
        """Sends to all of some pipes, but waits for none of them: for protocols that know what to do then.

        :param pipes: their ids.
        :param content: bytes.
        :param timeout: seconds that it may wait for memory for a large content.
        :param flags: of the message.
        :param head: goes before the content.
        :returns: the pipes that had no room. Those that are gone are left out.
        """
        cdef Segment segment = self.sending()
        cdef message m
        cdef Py_buffer view
        cdef Block block = None
        cdef int sent = 0
        cdef Py_ssize_t ahead = PyBytes_GET_SIZE(head)
        cdef char joined[SHORT_JOIN]
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(ahead + view.len)
            if ahead and ahead + view.len > SHORT_JOIN:
                return self._offer(pipes, b"".join((head, content)), timeout, flags)
            _describe(&m, SEND_TO_ALL | flags, self.ttl, view.buf, view.len)
            if ahead:
                memcpy(joined, PyBytes_AS_STRING(head), ahead)
                memcpy(joined + ahead, view.buf, view.len)
                _describe(&m, SEND_TO_ALL | flags, self.ttl, joined, ahead + view.len)
            if m.length >= LARGE and self.arena_limit and pipes:
                block = self.new_content(segment, &m, _deadline(timeout), timeout)
            return self.offer(segment, &m, pipes, block, &sent)
        finally:
            PyBuffer_Release(&view)

    def _offer_msg(self, pipes, Message msg not None):
        """The same with a message as it is."""
        cdef Segment segment = self.sending()
        cdef message m
        cdef Py_buffer view
        cdef Block block = msg.held_block()
        cdef int sent = 0
        _view_content(msg, &view)
        try:
            _describe_message(&m, msg, &view)
            if block is None and m.length >= LARGE and self.arena_limit and pipes:
                block = self.new_content(segment, &m, 0, 0)
            return self.offer(segment, &m, pipes, block, &sent)
        finally:
            _leave_content(msg, &view)

    def _send_through(self, uint32_t pipe, content, timeout=_unset, *, int flags=0):
        """Like ``send``, but through this pipe.

        :param flags: of the message, and its send type.
        :raises BrokenPath: it is gone.
        """
        cdef message m
        cdef Py_buffer view
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            _check_length(view.len)
            _describe(&m, flags, self.ttl, view.buf, view.len)
            self.deliver(&m, pipe, timeout, None)
        finally:
            PyBuffer_Release(&view)

    def _send_on(self, Message msg not None, timeout=_unset):
        """Sends a message to every peer but the one that it came from; how many."""
        cdef message m
        cdef Py_buffer view
        _view_content(msg, &view)
        try:
            _describe_message(&m, msg, &view)
            return self.deliver_to_all(&m, timeout, msg.held_block(), msg.pipe_id)
        finally:
            _leave_content(msg, &view)

    cdef int try_pipe(self, Segment segment, const message *given, uint32_t pipe, Block content) except -1:
        """RING_OK, RING_FULL, RING_TOO_LONG, or SEND_NO_PATH when the peer is gone meanwhile."""
        cdef uint8_t note_bytes[NOTE_SIZE]
        cdef message m = given[0]
        cdef _Peers peers
        cdef int rc = SEND_STALE
        if content is not None:
            content = content.share()
            content.describe(&m, note_bytes)
        elif m.length < LONG_COPY:
            peers = self.current_peers(segment)
            rc = send_by_pipe(&segment.seg, peers.list, pipe, &m, False)
        while rc not in (RING_OK, RING_FULL, SEND_NO_PATH, SEND_DISCARDED, SEND_WRITTEN):
            if rc == RING_TOO_LONG and content is None and self.arena_limit:
                return self.try_pipe(segment, given, pipe, self.new_content(segment, given, 0, 0))
            if rc == RING_TOO_LONG:
                return rc
            if rc != RING_BUSY:
                self.recover(segment, rc, pipe, m.length)
            peers = self.current_peers(segment)
            with nogil:
                rc = send_by_pipe(&segment.seg, peers.list, pipe, &m, True)
        if rc == RING_OK and content is not None:
            content.held = False
        return RING_OK if rc == SEND_DISCARDED or rc == SEND_WRITTEN else rc

    def send_msg(self, Message msg not None, timeout=_unset):
        """Sends a message as it is, with its paths, flags and ttl: forwards it, as a switch does.

        :raises MessageDropped: its ttl is used up (or no room, with best effort).
        :raises BrokenPath: to a destination, and it has arrived already or the next pipe is gone.
        :raises Timeout, ContentTooLong, Closed: as ``send``.
        """
        cdef message m
        cdef Py_buffer view
        _view_content(msg, &view)
        try:
            _describe_message(&m, msg, &view)
            self.deliver_by_type(&m, timeout, msg.held_block())
        finally:
            _leave_content(msg, &view)

    cdef int deliver_by_type(self, message *m, object timeout, Block content) except -1:
        cdef int kind = m.flags & FLAG_SEND_TYPE
        if kind == SEND_TO_ONE:
            return self.deliver(m, 0, timeout, content)
        if kind == SEND_TO_ALL:
            return self.deliver_to_all(m, timeout, content)
        if m.distance == 0:
            raise BrokenPath("the message is for a destination and has arrived: there is no pipe to pass it on to")
        cdef uint32_t pipe = get_u32(m.destination)
        if pipe == 0:
            raise BrokenPath("pipe 0 of the destination is gone, or never was: ids begin with 1")
        return self.deliver(m, pipe, timeout, content)

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
                if batch.row[0].length >= LARGE and self.arena_limit:
                    at += self.deliver_large(&batch.row[0], deadline, timeout, at)
                else:
                    at += self.deliver_batch(&batch, deadline, timeout, at)
            finally:
                _empty(&batch)
        return at

    cdef int deliver_large(self, const message *m, int64_t deadline, object timeout, Py_ssize_t before) except -1:
        try:
            self.push_large(self.sending(), m, 0, deadline, timeout)
        except Timeout as error:
            error.sent = before
            raise
        return 1

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
            if view.len < LONG_COPY:
                continue
            if view.len >= LARGE and batch.n > 1:
                _drop_last(batch)  # it goes by itself
            break
        return 0

    cdef int deliver_batch(self, _Batch *batch, int64_t deadline, object timeout, Py_ssize_t before) except -1:
        cdef Segment segment = self.sending()
        cdef _Peers peers
        cdef unsigned done = 0
        cdef uint32_t turn
        cdef int rc
        if batch.row[batch.n - 1].length < LONG_COPY:
            peers = self.open_peers()
            turn = self.turn_now()
            rc = send_row(&segment.seg, peers.list, &turn, batch.row, batch.n, &done, False)
            self.turn_next(turn)
            if rc == RING_OK:
                return done
        while True:
            peers = self.current_peers(segment)
            turn = self.turn_now()
            with nogil:
                rc = send_row(&segment.seg, peers.list, &turn, batch.row + done, batch.n - done, &done, True)
            self.turn_next(turn)
            if rc == RING_OK:
                return done
            if rc == RING_FULL:
                try:
                    self.await_room(segment, peers, 0, &batch.row[done], deadline, timeout)
                except Timeout as error:
                    error.sent = before + done
                    raise
            elif rc == RING_TOO_LONG and self.arena_limit:
                return done + self.deliver_large(&batch.row[done], deadline, timeout, before + done)
            else:
                self.recover(segment, rc, 0, batch.row[done].length)

    # --- receiving ---

    def recv(self, timeout=_unset):
        """The next message's content. Any thread and process that has this Socket gets another message.

        :param timeout: seconds; None waits for ever, 0 never waits. Default: the option ``recv_timeout``.
        :raises Timeout: none came in that time.
        :raises Closed: the Socket is closed, or the process that made it has ended.
        """
        return self.receive(False, True, timeout)

    def recv_msg(self, timeout=_unset, *, bint copy=True):
        """The next :class:`Message`, with its source path to answer to. Otherwise like ``recv``.

        :param copy: False: the message's ``content`` is a read-only memoryview, and a large one lies where the sender
            has put it. ``msg.release()``, leaving ``with msg:`` or garbage collection gives the memory back.
        """
        return self.receive(True, copy, timeout)

    cdef object receive(self, bint as_message, bint copy, object timeout):
        cdef Segment segment = self.alive()
        cdef int64_t deadline = -1
        cdef int rc
        if self.refuses_recv:
            raise NotSupported("this Socket was made with no_recv=True: it only sends")
        while True:
            taken = self.take(segment, as_message, copy, &rc)
            if rc == RING_OK:
                return taken
            if deadline < 0:
                if timeout is _unset:
                    timeout = self.recv_timeout
                deadline = _deadline(timeout)
            self.await_message(segment, rc, deadline, timeout)

    cdef object take(self, Segment segment, bint as_message, bint copy, int *rc):
        """The next content or Message. None: *rc says why."""
        taken = _take_one(&segment.seg.inbox, as_message, rc)
        if rc[0] == TAKE_FAR:
            return self.take_far(segment, as_message, copy, rc)
        if rc[0] == RING_OK and as_message and not copy and (<Message>taken)._content is not None:
            (<Message>taken)._content = memoryview((<Message>taken)._content)
        return taken

    cdef object take_far(self, Segment segment, bint as_message, bint copy, int *rc, Board board=None,
                         uint32_t slot=0):
        """The same for a content that lies in an arena. *rc is RING_AGAIN when somebody else has taken it.

        :param board: where it is noted that the worker of `slot` takes it.
        """
        cdef ring *inbox = &segment.seg.inbox
        cdef uint64_t holder = _holder()
        cdef ring_reader reader
        cdef record rec
        cdef note n
        cdef block b
        cdef segment_id its
        cdef Arena arena
        cdef Message taken = <Message>Message.__new__(Message) if as_message else None
        cdef int claimed = RING_CORRUPT
        rc[0] = ring_enter(inbox, &reader, False)
        if rc[0] != RING_OK:
            return None
        rc[0] = _front_note(&reader, &rec, &n)
        ring_leave(&reader)
        if rc[0] != RING_OK:
            return None
        # Without the lock: a collection of garbage may begin here, and run anything.
        its = n.arena
        arena = self.known_arena(segment, its)
        rc[0] = ring_enter(inbox, &reader, False)
        if rc[0] != RING_OK:
            return None
        rc[0] = _front_note(&reader, &rec, &n)
        if rc[0] == RING_OK and (n.arena.family != its.family or n.arena.number != its.number):
            rc[0] = RING_AGAIN  # somebody else was faster
        if rc[0] != RING_OK:
            ring_leave(&reader)
            return None
        if as_message:
            try:
                _fill(inbox, &rec, taken)
            except BaseException:
                ring_leave(&reader)
                raise
        rc[0] = RING_AGAIN
        with nogil:
            if arena is not None:
                claimed = arena_claim(&arena.a, &n, holder, &b)
            if claimed == RING_OK and board is not None:
                board.take_record(slot, &reader, &rec, b.data, b.length)
            else:
                ring_pop(&reader, &rec)
            ring_leave(&reader)
        if claimed != RING_OK:
            atomic_fetch_add(&segment.seg.shared.dropped, 1)
            return None
        content = _new_block(arena, &b)
        if _is_spent(&rec):
            return None
        rc[0] = RING_OK
        return _unpack(content, taken, as_message, copy)

    cdef int await_message(self, Segment segment, int rc, int64_t deadline, object timeout) except -1:
        cdef int why
        if rc == RING_BUSY:
            with nogil:
                ring_await_consumers(&segment.seg.inbox)
            return 0
        if rc == RING_AGAIN:
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

    def recv_msgs(self, Py_ssize_t max_messages, timeout=_unset, *, bint copy=True):
        """Like ``recv_many``, but :class:`Message` objects.

        :param copy: as for ``recv_msg``.
        """
        if max_messages < 1:
            raise BadOption(f"max_messages is 1 or more, not {max_messages}")
        cdef list out = [self.receive(True, copy, timeout)]
        while len(out) < max_messages:
            try:
                one = self._poll(True, copy=copy)
            except Exception:
                break  # what was taken is not lost; the error comes again
            if one is _unset:
                break
            out.append(one)
        return out

    def _poll(self, bint as_message, *, bint copy=True):
        """The next content or Message, or UNSET when none is there. For event loops."""
        cdef Segment segment = self.alive()
        cdef int rc
        if self.refuses_recv:
            raise NotSupported("this Socket was made with no_recv=True: it only sends")
        while True:
            taken = self.take(segment, as_message, copy, &rc)
            if rc == RING_OK:
                return taken
            if rc == RING_EMPTY:
                return _unset
            self.await_message(segment, rc, 0, 0)

    @property
    def _pipe_ids(self):
        """Of the pipes that are open."""
        return list(self.current_peers(self.alive()).by_id)

    @property
    def _depth(self):
        """How many receives would end at once; all of them when it is closed."""
        segment = self.memory()
        if segment is None or ring_is_closed(&segment.seg.inbox):
            return 0x7FFFFFFF
        return ring_depth(&segment.seg.inbox)

    @property
    def _is_readable(self):
        """Whether a receive would end at once, with a message or an error."""
        segment = self.memory()
        return segment is None or ring_is_readable(&segment.seg.inbox)

    def _await_readable(self, timeout):
        """Waits up to so many seconds until a receive would end at once; whether it would."""
        cdef Segment segment = self.alive()
        cdef int64_t deadline = _deadline(timeout)
        cdef int64_t look
        cdef int why
        while not ring_is_readable(&segment.seg.inbox) and platform_now() < deadline:
            look = _look_at(deadline, not self.is_here())
            with nogil:
                why = ring_wait_readable(&segment.seg.inbox, look)
            if why != WAIT_WOKEN:
                self.look_around(segment)
        return ring_is_readable(&segment.seg.inbox)

    def _look_around(self):
        """Finds out whether the Socket's owner still lives; if not, the Socket is closed."""
        segment = self.memory()
        if segment is not None:
            self.look_around(segment)

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
                try:
                    one = self.take(segment, False, True, &rc)
                except Exception:
                    if not out:
                        raise
                    break  # what was taken is not lost; the error comes again
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

    def _recv_in_place(self, Py_ssize_t max_messages, timeout=_unset):
        """Like ``recv_many``, but a content that lies in an arena comes as a memoryview of it there. It is writable,
        so who sends it must have sent it to this Socket alone."""
        cdef Segment segment = self.alive()
        cdef int64_t deadline = -1
        cdef list out = []
        cdef int rc
        while len(out) < max_messages:
            rc = _take_short(&segment.seg.inbox, out, max_messages)
            if rc == RING_OK and len(out) < max_messages:
                try:
                    one = self.take_in_place(segment, &rc)
                except Exception:
                    if not out:
                        raise
                    break  # what was taken is not lost; the error comes again
                if rc == RING_OK:
                    out.append(one)
            if rc == RING_OK:
                continue
            if out:
                break
            if deadline < 0:
                deadline = _deadline(self.recv_timeout if timeout is _unset else timeout)
            self.await_message(segment, rc, deadline, timeout)
        return out

    cdef object take_in_place(self, Segment segment, int *rc):
        taken = _take_one(&segment.seg.inbox, False, rc)
        if rc[0] != TAKE_FAR:
            return taken
        return self.take_far(segment, False, False, rc)

    def __iter__(self):
        """Messages as they come, until the Socket is closed."""
        return self

    def __next__(self):
        try:
            return self.receive(True, True, None)
        except Closed:
            raise StopIteration from None

    # --- the pipe table: for the connector, in the owner, under its lock ---

    def _reserve_pipe(self):
        """The id for a pipe that is being made; 0 when there is no place left."""
        return pipe_reserve(&self.alive().seg)

    def _open_pipe(self, uint32_t pipe, str peer not None, uint32_t peer_id, Wire wire=None):
        """Lets messages through. peer: name of the segment they go to; empty when the peer discards all."""
        cdef uint32_t kind = PIPE_TO_INBOX if wire is None else PIPE_TO_RAW_WIRE if wire.l.w.chunk else PIPE_TO_WIRE
        cdef Segment segment = self.alive()
        cdef bytes name = peer.encode("ascii")
        if len(name) > 30:
            raise BadMessage(f"{peer!r} is no name of a segment")
        cdef const char *raw = name
        with nogil:
            pipe_open(&segment.seg, pipe, raw, peer_id, kind)

    def _release_pipe(self, uint32_t pipe):
        """Ends a pipe: nothing is sent there any more, and its id is free again."""
        cdef Segment segment = self.alive()
        pipe_release(&segment.seg, pipe)

    def _flush(self):
        """Moves what is pending into pipes, as far as there is room. True: nothing is left."""
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef uint32_t turn = self.turn_now()
        cdef int rc
        if ring_depth(&segment.seg.pending) == 0:
            return True
        while True:
            peers = self.current_peers(segment)
            with nogil:
                rc = flush_pending(&segment.seg, peers.list, &turn, True)
            if rc != SEND_NO_ARENA:
                return rc == RING_OK
            self.learn_arena(segment, send_missing_arena())

    def _resend(self, Segment frozen not None, uint32_t peer_id, at):
        """Sends to others what a peer that is gone had not received of a pipe's to-one messages.

        :param at: where to go on; None at first.
        :returns: where to go on, or None at the end.
        """
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef uint64_t cursor = ring_frozen_start(&frozen.seg.inbox) if at is None else at
        cdef uint32_t turn = self.turn_now()
        cdef int rc
        if ring_depth(&frozen.seg.inbox) == 0:
            return None
        while True:
            peers = self.current_peers(segment)
            with nogil:
                rc = resend_unreceived(&segment.seg, peers.list, &turn, &frozen.seg.inbox, peer_id, &cursor)
            if rc != SEND_NO_ARENA:
                return None if rc == RING_OK else cursor
            self.learn_arena(segment, send_missing_arena())

    def _release_orphans(self):
        """In the closed Socket: gives back large contents in its inbox whose senders are gone."""
        cdef Segment segment = self.alive()
        cdef _Peers peers
        cdef uint64_t cursor = ring_frozen_start(&segment.seg.inbox)
        cdef int rc = SEND_NO_ARENA
        while rc == SEND_NO_ARENA:
            peers = self.current_peers(segment)
            with nogil:
                rc = release_orphans(&segment.seg, peers.list, &cursor)
            if rc == SEND_NO_ARENA:
                self.learn_arena(segment, send_missing_arena())
        for arena in self.current_peers(segment).known.values():
            if arena is not None and arena.closed:
                arena.close()  # it may have been the last

    # --- counters ---

    def stats(self):
        """Counters of the Socket, over all its processes, read without stopping anybody.

        ``received`` and ``sent`` messages since its creation, ``depth`` messages and ``used`` bytes in the inbox,
        ``pending`` messages kept while nobody is connected, ``blocked`` waits of peers for room in the inbox,
        ``dropped`` messages given up. Of its arena: ``arena_used`` bytes of large contents that are written, on their
        way, or read; ``arena_memory`` bytes that it takes from the system.
        """
        cdef Segment segment = self.alive()
        arena = self._own_arena()
        if arena is not None and arena.used:
            self._reclaim(arena)
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
            "dropped": atomic_load(&segment.seg.shared.dropped),
            "arena_used": 0 if arena is None else arena.used,
            "arena_memory": 0 if arena is None else arena.backed,
        }


cdef int _view_content(Message msg, Py_buffer *view) except -1:
    """The content of a message that is sent on."""
    if msg.ttl == 0:
        raise MessageDropped("the message's ttl is used up: it came through too many nodes")
    with cython.critical_section(msg):  # or another thread might release it just now
        content = msg._content
        if content is _released:
            raise BadMessage("the message's content was released: send it before")
        return PyObject_GetBuffer(b"" if content is None else content, view, PyBUF_SIMPLE)


cdef int _leave_content(Message msg, Py_buffer *view) except -1:
    with cython.critical_section(msg):  # a memoryview counts its users without any lock of its own
        PyBuffer_Release(view)
    return 0


cdef int _describe_message(message *m, Message msg, const Py_buffer *view) except -1:
    _check_length(view.len)
    _describe(m, msg.flags | (FLAGS_RAW_END if msg.held_content() is None else 0), msg.ttl, view.buf, view.len)
    m.is_remote = msg.is_remote
    _set_paths(m, msg._source, msg._destination)
    return 0


cdef void _drop_last(_Batch *batch) noexcept:
    batch.n -= 1
    if batch.held[batch.n]:
        PyBuffer_Release(&batch.views[batch.n])


cdef void _empty(_Batch *batch) noexcept:
    while batch.n:
        _drop_last(batch)


cdef bytes _path_to(object destination):
    path = _encode_path(destination)
    if not path:
        raise BrokenPath("the destination is empty: there is no pipe to send through")
    return path


cdef int _back(Block content) except -1:
    """Puts memory behind a new block, if need be that of other arenas. RING_OK or RING_NO_MEMORY."""
    cdef int rc
    with nogil:
        rc = arena_back(&content.arena.a, &content.b)
    if rc != RING_NO_MEMORY:
        return rc
    for arena in Arena.mapped():
        arena.trim()
    with nogil:
        rc = arena_back(&content.arena.a, &content.b)
    return rc


cdef object _unpack(Block content, object message, bint as_message, bint copy):
    """What is given for a content in a block, and the Message around it."""
    if not copy and not as_message:
        content.writable = True  # see _recv_in_place
        return memoryview(content)
    if not copy:
        (<Message>message).block = content
        (<Message>message)._content = memoryview(content)
        return message
    data = _new_bytes(content.b.length)
    _copy_large(PyBytes_AS_STRING(data), content.b.data, content.b.length)
    content.give_back()
    if not as_message:
        return data
    (<Message>message)._content = data
    return message
