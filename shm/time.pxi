# Deadlines, and spinning.

cdef int64_t _deadline(object timeout) except? -1:
    """Absolute nanoseconds for a timeout in seconds; None is never, 0 is at once."""
    if timeout is None:
        return NEVER
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise BadOption(f"timeout must be a number of seconds or None, not {timeout!r}") from None
    if math.isnan(seconds) or seconds < 0:
        raise BadOption(f"timeout must be 0 or more seconds, not {timeout!r}; None waits for ever")
    if seconds == 0:
        return 0
    if seconds > 1e9:
        return NEVER
    return platform_now() + <int64_t>(seconds * 1e9)


# A wait comes back to Python this often, where there is something to look after.
cdef enum:
    LOOK_NS = 100000000


cdef unsigned long _main_thread = threading.main_thread().ident


def _note_main_thread():
    """In a forked child the thread that forked is the main thread."""
    global _main_thread
    _main_thread = threading.get_ident()


os.register_at_fork(after_in_child=_note_main_thread)


cdef int64_t _look_at(int64_t deadline, bint always):
    """When a wait must come back at the latest: the main thread for signals, who shares a Socket for its owner."""
    if not always and PyThread_get_thread_ident() != _main_thread:
        return deadline
    cdef int64_t look = (platform_now() // LOOK_NS + 1) * LOOK_NS
    return look if look < deadline else deadline


def set_spin(double seconds):
    """How long a wait may spin before it sleeps, at most. 0 never spins. For the whole process.

    Spinning answers in half a microsecond where sleeping takes a wake-up, at the price of a processor meanwhile. Each
    Socket learns by itself when spinning pays; this is only the limit (default 100 microseconds).

    :param seconds: from 0 to 1.
    :raises BadOption: out of range.
    """
    if not 0 <= seconds <= 1:
        raise BadOption(f"spin must be between 0 and 1 seconds, not {seconds!r}")
    ring_set_spin(<uint32_t>(seconds * 1e9))


def get_spin():
    """The limit of spinning, seconds. See :func:`set_spin`."""
    return ring_get_spin() / 1e9
