# Segments of Sockets, and the peers they are connected to.

# One mapping of a segment serves all Sockets of the process.
cdef object _mapped = WeakValueDictionary()


cdef class Segment(_Mapping):
    """The shared memory of one Socket: its inbox, what it has pending, its table of pipes."""

    cdef segment seg
    cdef readonly str name

    def __init__(self):
        raise TypeError("a segment is made with Segment.create or found with Segment.open")

    @staticmethod
    def create(str name not None, uint64_t inbox_bytes, uint32_t inbox_limit, uint32_t pending_limit,
               uint32_t longest=0xFFFFFFFF):
        """Makes the segment of a new Socket.

        :raises OutOfSharedMemory: no memory for it.
        """
        cdef uint64_t capacity = ring_capacity(inbox_bytes)
        cdef segment_plan plan
        plan.id = _id_of(name)
        plan.inbox_capacity = plan.pending_capacity = capacity
        plan.inbox_limit = inbox_limit
        plan.pending_limit = pending_limit
        plan.longest = longest
        fd = create_memory(name, segment_size(capacity, capacity))
        self = <Segment>Segment.__new__(Segment)
        try:
            self.map(fd)
            _check_made(segment_init(self.base, self.fd, &plan), 4096)
            self.attach(name)
        except BaseException:
            unlink_memory(name)
            raise
        _mapped[name] = self
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
            fd = open_memory(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"shared memory {name} is gone: its Socket is closed ({error})") from None
        self = <Segment>Segment.__new__(Segment)
        self.map(fd)
        self.attach(name)
        return _registered(_mapped, name, self)

    cdef int attach(self, str name) except -1:
        if segment_attach(&self.seg, self.base, self.size, self.fd) != RING_OK:
            raise BadMessage(f"{name} holds no Socket of this version")
        self.name = name
        return 0

    def close(self):
        """Freezes it for all processes."""
        with nogil:
            segment_close(&self.seg)

    @property
    def closed(self):
        """Whether its Socket is closed, for all processes."""
        return segment_is_closed(&self.seg)


cdef class _Peer:
    """One open pipe with the mapping that keeps its ring there."""

    cdef peer p
    cdef Segment target
    cdef Wire wire


cdef class _Peers:
    """The open pipes at one version of the pipe table. Never changed, so a thread without the GIL can use it while
    others go on to the next version; the reference it holds keeps the memory."""

    cdef peer_list *list
    cdef known_arena *arenas
    cdef dict by_id
    cdef dict known  # arenas by family and number; None: gone

    def __dealloc__(self):
        free(self.list)
        free(self.arenas)


cdef _Peers _read_peers(Segment own, _Peers before, dict known):
    """The pipe table as it is now, and the known arenas; keeps what it knows."""
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
    _list_arenas(self, known)
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
        if one.p.inbox != NULL and one.p.kind != PIPE_TO_RAW_WIRE:
            self.list.receivers += 1
            self.list.only = &one.p if self.list.receivers == 1 else NULL
    return self


cdef int _list_arenas(_Peers self, dict known) except -1:
    cdef unsigned n = 0
    cdef Arena one
    self.known = known
    self.arenas = <known_arena *>malloc(len(known) * sizeof(known_arena) + 1)
    if self.arenas == NULL:
        raise MemoryError
    for key, one in known.items():
        self.arenas[n].id = _id_of_key(key)
        self.arenas[n].arena = NULL if one is None else &one.a
        n += 1
    self.list.arenas = self.arenas
    self.list.arena_count = n
    return 0


cdef segment_id _id_of_key(tuple key) except *:
    cdef segment_id known
    known.family, known.number = key
    return known


cdef _Peer _new_peer(pipe_slot *slot, uint32_t number):
    """None when the peer's segment is gone: its pipe will be removed soon."""
    self = <_Peer>_Peer.__new__(_Peer)
    self.p.id = number
    self.p.peer_id = slot.peer_id
    self.p.slot = slot
    self.p.inbox = NULL
    self.p.wire = NULL
    self.p.kind = slot.kind
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
    self.p.segment = self.target.seg.id
    if self.p.kind != PIPE_TO_INBOX:
        self.wire = _wires.get(name)
    if self.wire is not None:
        self.p.wire = &self.wire.l.w
    return self
