# Messages and their bytes.

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


# The content of a message after its release.
cdef object _released = memoryview(b"")
_released.release()


# The first lines of these docstrings, so far to the left, are how CPython is told a constructor's signature.
cdef class Message:
    """Message(content=b"", *, send_type=0, destination=(), source=(), ttl=16, flags=0)
--

A message with all that came with it.

:param content: the bytes; anything with the buffer protocol. None: nothing more comes by a raw pipe.
:param send_type: 0 to one, 1 to all, 2 to a destination.
:param destination: path of pipe ids, nearest first; for send type 2.
:param source: path back to where it came from.
:param ttl: how many more nodes may pass it on, 0 to 255.
:param flags: further flags (internal 4, no source 8, raw 16, control 32).
:raises BadMessage: one of these is out of range.
"""

    # `_content` and `block` change with `release`, under the critical section of the object; who uses them takes a
    # reference first. All else is set before anybody else knows the object.
    cdef object _content
    cdef readonly int flags
    cdef readonly int ttl
    cdef readonly unsigned int pipe_id
    cdef bytes _source
    cdef bytes _destination
    cdef Block block
    cdef readonly bint is_remote

    def __init__(self, content=b"", *, int send_type=0, destination=(), source=(), int ttl=16, int flags=0):
        if not 0 <= send_type <= 2:
            raise BadMessage(f"send_type is 0 (to one), 1 (to all) or 2 (to a destination), not {send_type}")
        if not 0 <= ttl <= 255:
            raise BadMessage(f"ttl is between 0 and 255, not {ttl}")
        if not 0 <= flags <= 255:
            raise BadMessage(f"flags are between 0 and 255, not {flags}")
        self._content = content
        self.flags = (flags & ~FLAG_SEND_TYPE) | send_type
        self.ttl = ttl
        self._source = _encode_path(source)
        self._destination = _encode_path(destination)

    def with_content(self, content):
        """A message like this one, on the same way, with another content: what a switch's middleware gives.

        :param content: anything with the buffer protocol.
        """
        other = <Message>Message.__new__(Message)
        other._content = content
        other.flags = self.flags
        other.ttl = self.ttl
        other.pipe_id = self.pipe_id
        other._source = self._source
        other._destination = self._destination
        other.is_remote = self.is_remote
        return other

    def release(self):
        """Ends ``content``, and gives its memory back when nobody else uses it. For ``recv_msg(copy=False)``.

        Arrays made of the content keep the memory until they are gone. Twice is no error.
        """
        with cython.critical_section(self):
            block, self.block = self.block, None
            content = self._content
            if isinstance(content, memoryview) and content is not _released:
                self._content = _released
                _let_go(content)

    @property
    def content(self):
        """The bytes: a memoryview after ``recv_msg(copy=False)``. None: nothing more comes by a raw pipe."""
        return self.held_content()

    @cython.final
    cdef inline object held_content(self):
        with cython.critical_section(self):
            return self._content

    @cython.final
    cdef inline Block held_block(self):
        """None: its content lies in no block, or was released."""
        with cython.critical_section(self):
            return self.block

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()

    @classmethod
    def __class_getitem__(cls, item):
        """For annotations: ``Message[bytes]``."""
        return GenericAlias(cls, item)

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
        content = self.held_content()
        if content is None:
            size = "the end"
        else:
            size = "released content" if content is _released else f"{memoryview(content).nbytes} bytes"
        return (
            f"<Message of {size}, send_type={self.send_type}, source={self.source},"
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
    m.note = NULL
    m.is_remote = 0
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
    content = bytes(msg.held_content())
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
        msg._content = PyBytes_FromStringAndSize(<const char *>m.content, m.length)
        return msg, used
    finally:
        PyBuffer_Release(&view)


# What a received record becomes.


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
    """It is dropped: its ttl is used up, or its path is as long as paths get."""
    return rec.head.ttl == 0 or (rec.head.hops == PATH_MAX_IDS and not rec.head.flags & FLAG_NO_SOURCE)
