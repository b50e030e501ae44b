"""The background thread: one per process, started when somebody first needs it.

It accepts and makes connections, notices their end, and runs timers. Messages between processes of this machine never
pass through it. Everything it calls must return soon.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .descriptors import blank
from .late import late, log

if TYPE_CHECKING:
    import heapq
    import selectors
    import socket
else:
    heapq = late("heapq")
    selectors = late("selectors")
    socket = late("socket")

# Seconds until the next look at the timers, at most: a selector takes no time that is too long, or endless.
_LONGEST_WAIT = 3600.0


class Timer:
    """A call that is due at some time, until it is cancelled."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """The call is not made; nothing happens if it has been."""
        self._call = None

    def fire(self) -> None:
        """Makes the call, once."""
        call, self._call = self._call, None
        if call is not None:
            call()


class HasFileno(Protocol):
    """What can be watched."""

    def fileno(self) -> int:
        """Its file descriptor."""
        ...


Call = Callable[[], None]


class Background:
    """The thread with what it waits for. It runs from the first :meth:`call` on.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        # Loaded before there is a thread: one that loads it for the first thing that it logs may do so just while
        # another one forks. Then what logging does before a fork is left out, and what it does afterwards fails.
        import logging  # noqa: F401

        self._name = name
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._wake, self._woken = _poke()
        self._selector.register(self._woken, selectors.EVENT_READ, (self._drain_wakes, None))
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._watched: dict[HasFileno, int] = {}
        # Guards what follows. Reentrant: a signal handler, or the garbage collector, may come here in between.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_leaving = False
        self._is_stopped = False
        self._is_parking = False
        self._is_parked = False

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in it."""
        return threading.current_thread() is self._thread

    @property
    def is_running(self) -> bool:
        """Whether there is a thread that does what it is given, now or after a fork."""
        return self._thread is not None or self._is_parked

    def call(self, function: Callable[[], None]) -> None:
        """Has it called in the thread, soon."""
        self._queue(function, starts=True)

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Has it called in the thread after ``delay`` seconds. At the end of the process it may never be called."""
        timer = Timer(function)
        due = (time.monotonic() + delay, next(self._order), timer)
        self._queue(lambda: heapq.heappush(self._timers, due), starts=not _is_ending)
        return timer

    def end_with(self, function: Callable[[], None]) -> None:
        """Has it called, to end something: soon, in the thread; or, if that does not run, here and now. This starts no
        thread: none can be started any more while the interpreter ends."""
        with self._lock:
            if self.is_running:
                self.call(function)
                return
        _guarded(function)

    def _queue(self, function: Callable[[], None], *, starts: bool) -> None:
        with self._lock:
            if self._is_stopped:  # nobody is there any more who would do it
                return
            self._soon.append(function)
            if starts and not self.is_running:
                self._start()
        with contextlib.suppress(OSError):  # full: it wakes anyway
            self._wake.send(b"\0")

    def _start(self) -> None:
        """With the lock."""
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    # In the thread only:

    def watch(self, connection: HasFileno, on_readable: Call | None, on_writable: Call | None = None) -> None:
        """Calls ``on_readable`` whenever there is something to read, or the end of it, ``on_writable`` whenever
        something can be written."""
        events = (selectors.EVENT_READ if on_readable else 0) | (selectors.EVENT_WRITE if on_writable else 0)
        descriptor = connection.fileno()
        self._selector.register(descriptor, events, (on_readable, on_writable))
        self._watched[connection] = descriptor

    def unwatch(self, connection: HasFileno) -> None:
        """Takes back :meth:`watch`; nothing happens if it was not watched."""
        descriptor = self._watched.pop(connection, None)
        if descriptor is None:
            return
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(descriptor)

    def _run(self) -> None:
        while not self._leaves():
            for key, events in self._selector.select(self._until_next_timer()):
                on_readable, on_writable = key.data
                if events & selectors.EVENT_READ and on_readable is not None:
                    _guarded(on_readable)
                elif on_writable is not None:
                    _guarded(on_writable)
            for _ in range(len(self._soon)):  # what these add comes after a look at the descriptors
                _guarded(self._soon.popleft())
            self._fire_timers()

    def _leaves(self) -> bool:
        """Whether the thread ends here: what it was given before it was stopped is done first; what it was given
        before it was parked is done later."""
        with self._lock:
            if self._is_parking or (self._is_leaving and not self._soon):
                self._is_parked = self._is_parking
                self._thread = None
                return True
            return False

    def _until_next_timer(self) -> float | None:
        if self._soon or self._is_parking:
            return 0
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _LONGEST_WAIT) if self._timers else None

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _guarded(heapq.heappop(self._timers)[2].fire)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    # --- the end, and forks ---

    def stop(self) -> None:
        """Ends the thread, if it runs, when it has done what it was given; waits for it."""
        with self._lock:
            self._is_leaving = True
            thread = self._thread
        if thread is not None and not self.is_current_thread:
            self._queue(lambda: None, starts=False)
            thread.join(5.0)
        with self._lock:
            if self.is_running:
                return
            self._is_stopped = True
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def park(self, seconds: float) -> None:
        """Ends the thread for a while, if that takes no longer than so many seconds."""
        with self._lock:
            thread = self._thread
            if thread is None or self.is_current_thread:
                return
            self._is_parking = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        thread.join(seconds)
        _await_its_end(thread, seconds)

    def resume(self) -> None:
        """Takes back :meth:`park`."""
        with self._lock:
            self._is_parking = False
            if self._is_parked:
                self._is_parked = False
                self._start()

    def abandon(self) -> None:
        """In a forked child: the thread is the parent's. Gives up the copies of its descriptors, without a word to the
        other ends: a peer must see the parent's death although the child lives on."""
        blank(number for watched, number in self._watched.items() if watched.fileno() == number)
        self._selector.close()
        self._wake.close()
        self._woken.close()


def _poke() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        log.exception("an error in the background thread")


_threads: dict[str, Background] = {}
_lock = threading.RLock()
_is_ending = False


def background() -> Background:
    """The thread of this process. It starts when it is given something to do."""
    return _thread("multisocket")


def mover() -> Background:
    """A second one, for connections whose bytes go through Python: they keep it busy."""
    return _thread("multisocket-mover")


def _thread(name: str) -> Background:
    with _lock:
        if name not in _threads:
            _threads[name] = Background(name)
        return _threads[name]


def let_end() -> None:
    """The interpreter ends: what is only due later starts no thread any more."""
    global _is_ending
    _is_ending = True


def stop() -> None:
    """Ends the threads, if there are any."""
    with _lock:
        threads = list(_threads.values())
    for thread in threads:  # what they still do may need them
        thread.stop()
    with _lock:
        _threads.clear()


def is_background_thread() -> bool:
    """Whether the caller runs in one of the threads, and so must not wait for them."""
    return any(thread.is_current_thread for thread in list(_threads.values()))


# --- forks ---

# While the process forks these threads are not there: so a program that has no other ones forks safely, and Python does
# not warn of it. Seconds that a fork waits for one that is busy; after that it goes on, as with any other thread.
_PARK_SECONDS = 0.1
# Forks that go on, of any thread.
_forks = 0
# Python 3.13 counts threads only when they are back. There, who forks without other ones is not warned.
_COUNTS_LATE = sys.version_info[:2] == (3, 13)
_UNFOUNDED = r"This process \(pid=\d+\) is multi-threaded, use of (fork|forkpty)\(\)"


def _await_its_end(thread: threading.Thread, seconds: float) -> None:
    """``join`` returns when the thread has done its last in Python: for the system it may be there a moment longer."""
    end = time.monotonic() + seconds
    while not thread.is_alive() and os.path.exists(f"/proc/self/task/{thread.native_id}"):
        if time.monotonic() >= end:
            return
        time.sleep(0.00002)


def _before_fork() -> None:
    global _forks
    with _lock:
        _forks += 1
        threads = list(_threads.values())
    for thread in threads:
        thread.park(_PARK_SECONDS)
    if _COUNTS_LATE:
        _warn_of_threads(len(os.listdir("/proc/self/task")) > 1)


def _warn_of_threads(are_there: bool) -> None:
    for known in list(warnings.filters):
        if known[1] is not None and known[1].pattern == _UNFOUNDED:
            warnings.filters.remove(known)  # type: ignore[attr-defined]
            warnings._filters_mutated()  # type: ignore[attr-defined]
    if not are_there:
        warnings.filterwarnings("ignore", _UNFOUNDED, DeprecationWarning)


def _after_fork_in_parent() -> None:
    global _forks
    with _lock:
        _forks -= 1
        threads = [] if _forks else list(_threads.values())
    for thread in threads:
        thread.resume()


def _after_fork_in_child() -> None:
    global _lock, _forks, _is_ending
    _lock = threading.RLock()
    _forks = 0
    _is_ending = False
    threads = list(_threads.values())
    _threads.clear()
    for thread in threads:
        thread.abandon()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
