# Contents that begin with a topic, received as pairs.

cdef extern from *:
    """
    static PyObject *new_pair(PyObject *kind, PyObject *first, PyObject *second)
    {
        PyObject *pair = ((PyTypeObject *)kind)->tp_alloc((PyTypeObject *)kind, 2);
        if (pair) {
            Py_INCREF(first);
            Py_INCREF(second);
            PyTuple_SET_ITEM(pair, 0, first);
            PyTuple_SET_ITEM(pair, 1, second);
        }
        return pair;
    }
    """
    object new_pair(type kind, object first, object second)


cdef class TopicReader:
    """Receives contents that are a topic (its length as u16 BE, then itself) and a rest, as pairs of these.

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
    cdef dict known
    cdef bytes head, topic

    def __init__(self, Endpoint sock not None, type kind not None, learn):
        if not issubclass(kind, tuple):
            raise TypeError(f"pairs are tuples, not {kind!r}")
        self.sock = sock
        self.kind = kind
        self.learn = learn
        self.forget()

    def know(self, bytes topic not None):
        """Gives contents with this topic from now on."""
        if len(self.known) >= 16384:
            self.known = {}
        self.known[len(topic).to_bytes(2, "big") + topic] = topic

    def forget(self):
        """Knows no topic any more."""
        self.known = {}
        self.head = self.topic = b""

    def recv(self, timeout=_unset):
        """The next one, as ``recv`` of the Socket."""
        cdef int64_t end
        if timeout is None or timeout is _unset:
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

    def recv_many(self, Py_ssize_t max_messages, timeout=_unset):
        """Some, as ``recv_many`` of the Socket; but none may be wanted of what came."""
        cdef list out = []
        cdef bytes body
        for body in self.sock.recv_many(max_messages, timeout):
            pair = self.split(body)
            if pair is not None:
                out.append(pair)
        return out

    cpdef object split(self, bytes body):
        """The pair that a content is, or None."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t start = PyBytes_GET_SIZE(self.head)
        cdef const char *at = PyBytes_AS_STRING(body)
        if not start or size < start or memcmp(at, PyBytes_AS_STRING(self.head), start) != 0:
            start = self.find(body)
            if not start:
                return self.learn(body)
        return new_pair(self.kind, self.topic, PyBytes_FromStringAndSize(at + start, size - start))

    cdef Py_ssize_t find(self, bytes body) except -1:
        """Where the content begins behind a known topic, which is that of `topic` then; 0: it is none of them."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(body)
        if size < 2 or size < 2 + (at[0] << 8) + at[1]:
            return 0
        head = body[:2 + (at[0] << 8) + at[1]]
        topic = self.known.get(head)
        if topic is None:
            return 0
        self.head = head
        self.topic = topic
        return len(head)
