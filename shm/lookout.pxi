#Waiting for an event loop.

cdef class Lookout:
    """Lookout()
--

Sleeps on the inboxes of Sockets in a thread, and makes a descriptor readable when something has come.

:raises OSError: the system has no descriptor left.
"""

    # `watched` changes under the critical section of the object, together with the list in `l`, which has a lock of its
    # own as well: for `run`.
    cdef lookout l
    cdef bint ready
    cdef dict watched  # (Socket, its memory) by the address of the inbox

    def __cinit__(self):
        cdef int error = lookout_init(&self.l)
        if error:
            raise OSError(error, os.strerror(error))
        self.ready = True
        self.watched = {}

    def __dealloc__(self):
        if self.ready:
            lookout_destroy(&self.l)

    def fileno(self):
        """Readable when something has come to one of those that are watched."""
        return self.l.poke

    def struck(self):
        """Those of the watched Sockets to which something has come; they are watched no more."""
        cdef ring *found[LOOKOUT_MOST]
        cdef unsigned i, n
        with cython.critical_section(self):
            n = lookout_struck(&self.l, found)
            return [self.watched.pop(<size_t>found[i])[0] for i in range(n)]

    def run(self):
        """The thread's work, until :meth:`stop`."""
        with nogil:
            lookout_run(&self.l)

    def stop(self):
        """Ends :meth:`run`."""
        lookout_stop(&self.l)

    def watch(self, Endpoint sock not None):
        """Looks out, once, for a message to a Socket, or its end.

        :returns: True when it is watched, False when there is something already, None: no place for another one.
        """
        cdef int rc
        cdef Segment segment = sock.memory()
        if segment is None:
            return False
        with cython.critical_section(self):
            rc = lookout_watch(&self.l, &segment.seg.inbox)
            if rc == LOOKOUT_FULL:
                return None
            if rc == LOOKOUT_READABLE:
                return False
            self.watched[<size_t>&segment.seg.inbox] = (sock, segment)
            return True

    def forget(self, Endpoint sock not None):
        """Looks out for this one no more."""
        cdef Segment segment
        with cython.critical_section(self):
            for address, (one, memory) in list(self.watched.items()):
                if one is sock:
                    segment = memory
                    lookout_forget(&self.l, &segment.seg.inbox)
                    del self.watched[address]
                    return
