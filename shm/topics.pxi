# Contents that begin with a topic, received as pairs.

cdef extern from *:
    """
    /* As tuple.__new__(kind, (first, second)) makes it, but in half the time. What that sets besides the items is set
     * here: from 3.14 on a tuple keeps its hash, which is -1 as long as it is not known. */
    static PyObject *new_pair(PyObject *kind, PyObject *first, PyObject *second)
    {
        PyObject *pair = ((PyTypeObject *)kind)->tp_alloc((PyTypeObject *)kind, 2);
        if (pair) {
            Py_INCREF(first);
            Py_INCREF(second);
            PyTuple_SET_ITEM(pair, 0, first);
            PyTuple_SET_ITEM(pair, 1, second);
    #if PY_VERSION_HEX >= 0x030E0000
            ((PyTupleObject *)pair)->ob_hash = -1;
    #endif
        }
        return pair;
    }
    """
    object new_pair(object kind, object first, object second)


cdef class TopicReader:
    """TopicReader(sock, kind, learn)
--

Receives contents that are a topic (its length as u16 BE, then itself) and a rest, as pairs of these.

What costs least is done for a topic like that of the content before, and little more for one that is known. For any
other, and what has none, ``learn`` decides.

:param sock: to receive from.
:param kind: of the pairs: a subclass of tuple with two items.
:param learn: gets a whole content; gives a pair or, to drop it, None. A topic that it makes ``known`` is not asked for
    again.
"""

    cdef Endpoint sock
    cdef type kind
    cdef object learn
    # Both change under the critical section of the object, `last` as a whole: what a topic begins with, and the topic of
    # the content before. All else is set once.
    cdef dict known
    cdef tuple last

    def __init__(self, Endpoint sock not None, type kind not None, learn):
        if not issubclass(kind, tuple):
            raise TypeError(f"pairs are tuples, not {kind!r}")
        self.sock = sock
        self.kind = kind
        self.learn = learn
        self.forget()

    def know(self, bytes topic not None):
        """Gives contents with this topic from now on."""
        head = len(topic).to_bytes(2, "big") + topic
        with cython.critical_section(self):
            if len(self.known) >= 16384:
                self.known = {}
            self.known[head] = topic

    def forget(self):
        """Knows no topic any more."""
        nothing = b"", b""
        with cython.critical_section(self):
            self.known = {}
            self.last = nothing

    @cython.final
    cdef inline tuple last_one(self):
        with cython.critical_section(self):
            return self.last

    def recv(self, timeout=_unset):
        """The next one, as ``recv`` of the Socket."""
        cdef int64_t end
        pair = self.take_like()
        if pair is not None:
            return pair
        if timeout is _unset:
            timeout = self.sock.recv_timeout
        if timeout is None:
            while True:
                pair = self.split(<bytes>self.sock.receive(False, True, timeout))
                if pair is not None:
                    return pair
        end = _deadline(timeout)
        while True:
            pair = self.split(<bytes>self.sock.receive(False, True, timeout))
            if pair is not None:
                return pair
            timeout = max(0, end - platform_now()) / 1e9
            if timeout == 0:
                break
        # What is there by now is still looked at, but nothing that comes later.
        for _ in range(self.sock._depth):
            pair = self.split(<bytes>self.sock.receive(False, True, 0))
            if pair is not None:
                return pair
        raise Timeout("no publication that is wanted came in time")

    def __iter__(self):
        """What comes, until the Socket is closed."""
        return self

    def __next__(self):
        pair = self.take_like()
        if pair is not None:
            return pair
        try:
            return self.recv(None)
        except Closed:
            raise StopIteration from None

    def recv_many(self, Py_ssize_t max_messages, timeout=_unset):
        """Some, as ``recv_many`` of the Socket; but none may be wanted of what came."""
        cdef list out = []
        cdef bytes body
        for body in self.sock.recv_many(max_messages, timeout):
            pair = self.split(body)
            if pair is not None:
                out.append(pair)
        return out

    cdef object take_like(self):
        """The next one, if its content is there, short, and of the same topic as the one before; None: it is to be taken as
        any other."""
        cdef Segment segment = self.sock.memory()
        cdef ring_reader reader
        cdef record rec
        cdef char head[SHORT_HEAD]
        cdef tuple last = self.last_one()
        cdef bytes known = <bytes>last[0]
        cdef Py_ssize_t start = PyBytes_GET_SIZE(known)
        cdef bytes content = None
        if not start or start > SHORT_HEAD or segment is None or self.sock.refuses_recv:
            return None
        if ring_enter(&segment.seg.inbox, &reader, False) != RING_OK:
            return None
        if _front(&reader, &rec) == RING_OK and not rec.is_far and start <= rec.head.length < LONG_COPY:
            ring_copy(reader.r, &rec, record_content_at(&rec), head, start)
            if memcmp(head, PyBytes_AS_STRING(known), start) == 0:
                content = self.take_behind(&reader, &rec, start)
        ring_leave(&reader)
        return None if content is None else new_pair(self.kind, last[1], content)

    cdef bytes take_behind(self, ring_reader *reader, const record *rec, Py_ssize_t start):
        cdef bytes content
        try:
            content = PyBytes_FromStringAndSize(NULL, rec.head.length - start)
        except MemoryError:
            return None  # the usual way says so
        ring_copy(reader.r, rec, record_content_at(rec) + start, PyBytes_AS_STRING(content), rec.head.length - start)
        ring_pop(reader, rec)
        return content

    cpdef object split(self, bytes body):
        """The pair that a content is, or None."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef tuple last = self.last_one()
        cdef bytes head = <bytes>last[0]
        cdef Py_ssize_t start = PyBytes_GET_SIZE(head)
        cdef const char *at = PyBytes_AS_STRING(body)
        if not start or size < start or memcmp(at, PyBytes_AS_STRING(head), start) != 0:
            last = self.find(body)
            if last is None:
                return self.learn(body)
            head = <bytes>last[0]
            start = PyBytes_GET_SIZE(head)
        return new_pair(self.kind, last[1], PyBytes_FromStringAndSize(at + start, size - start))

    cdef tuple find(self, bytes body):
        """What it begins with and the topic, if that is known: it is the last one then. None: it is not."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(body)
        if size < 2 or size < 2 + (at[0] << 8) + at[1]:
            return None
        head = body[:2 + (at[0] << 8) + at[1]]
        cdef tuple found
        with cython.critical_section(self):  # or it might be forgotten just now
            topic = self.known.get(head)
            if topic is None:
                return None
            self.last = found = head, topic
        return found


@cython.auto_pickle(False)
cdef class TopicWriter:
    """TopicWriter(sock, waits, hear, find, slow, refused, missed)
--

Sends contents with a topic before them (its length as u16 BE, then itself) to those who want it.

:param sock: to send through.
:param waits: whether ``slow`` waits, so that memory for a large content may be waited for as well.
:param hear: called first when something has come to the Socket.
:param find: gets a topic that is not known; gives the ids of pipes that it goes to, and what contents with it begin
    with. It may make that ``known``.
:param slow: gets the pipes that had no room, the beginning, the content and the timeout.
:param refused: gets the pipes whose peers take no content as long as that.
:param missed: gets all pipes when there was no memory in time, before that is raised.
"""

    cdef Endpoint sock
    cdef bint waits
    cdef object hear, find, slow, refused, missed
    # `known` changes under the critical section of the object; all else is set once.
    cdef dict known
    cdef atomic_hint careful

    @property
    def is_careful(self):
        """All goes to ``slow``."""
        return load_hint(&self.careful, memory_order_relaxed) != 0

    @is_careful.setter
    def is_careful(self, bint value):
        store_hint(&self.careful, value, memory_order_relaxed)

    def __init__(self, Endpoint sock not None, bint waits, hear, find, slow, refused, missed):
        self.sock = sock
        self.refused = refused
        self.missed = missed
        self.waits = waits
        self.hear = hear
        self.find = find
        self.slow = slow
        self.forget()

    def know(self, topic, tuple pipes not None, bytes head not None):
        """Sends contents with this topic so from now on."""
        found = pipes, head
        with cython.critical_section(self):
            if len(self.known) >= 16384:
                self.known = {}
            self.known[topic] = found

    def forget(self):
        """Knows no topic any more."""
        with cython.critical_section(self):
            self.known = {}

    def send(self, topic, content, timeout=_unset):
        """Sends; to how many."""
        cdef Segment segment = self.sock.memory()
        cdef dict by_topic
        cdef tuple found
        cdef tuple pipes
        if segment is None or not self.sock.is_here() or ring_is_readable(&segment.seg.inbox):
            self.hear()
        with cython.critical_section(self):
            by_topic = self.known
        known = by_topic.get(topic)
        found = self.find(topic) if known is None else known
        pipes = found[0]
        if not pipes:
            return 0
        later = pipes if load_hint(&self.careful, memory_order_relaxed) else self.offer(pipes, found[1], content, timeout)
        if later:
            self.slow(later, found[1], content, timeout)
        return len(pipes)

    cdef object offer(self, tuple pipes, bytes head, content, timeout):
        try:
            return self.sock._offer(pipes, content, timeout if self.waits else 0, 0, head)
        except (Timeout, MessageDropped):
            if self.waits:
                self.missed(pipes)
                raise
            return pipes  # slow ones take all memory for large contents
        except ContentTooLong as error:
            if len(error.refused) == len(pipes):
                raise
            self.refused(error.refused)
            return error.without_room
