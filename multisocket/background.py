"""The background thread: one per process, started when somebody first needs it.

It accepts and makes connections, notices their end, and runs timers. Messages between processes of this machine never
pass through it. Everything it calls must return soon.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .descriptors import blank

log = logging.getLogger("multisocket")

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


Call = Callable[[], None]


class Background:
    """The thread with what it waits for.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, (self._drain_wakes, None))
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._watched: dict[HasFileno, int] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in it."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], None]) -> None:
        """Has it called in the thread, soon."""
        self._soon.append(function)
        with contextlib.suppress(OSError):  # full: it wakes anyway
            self._wake.send(b"\0")

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Has it called in the thread after ``delay`` seconds."""
        timer = Timer(function)
        due = (time.monotonic() + delay, next(self._order), timer)
        self.call(lambda: heapq.heappush(self._timers, due))
        return timer

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
        while not self._stopping:
            for key, events in self._selector.select(self._until_next_timer()):
                on_readable, on_writable = key.data
                if events & selectors.EVENT_READ and on_readable is not None:
                    _guarded(on_readable)
                elif on_writable is not None:
                    _guarded(on_writable)
            for _ in range(len(self._soon)):  # what these add comes after a look at the descriptors
                _guarded(self._soon.popleft())
            self._fire_timers()

    def _until_next_timer(self) -> float | None:
        if self._soon:
            return 0
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _LONGEST_WAIT) if self._timers else None

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _guarded(heapq.heappop(self._timers)[2].fire)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def stop(self) -> None:
        """Ends the thread; waits for it."""
        self._stopping = True
        self.call(lambda: None)
        if self.is_current_thread:
            return
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._selector.close()
            self._wake.close()
            self._woken.close()

    def abandon(self) -> None:
        """In a forked child: the thread is the parent's. Gives up the copies of its descriptors, without a word to the
        other ends: a peer must see the parent's death although the child lives on."""
        blank([*self._watched.values(), self._wake.fileno(), self._woken.fileno()])
        self._selector.close()


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        log.exception("an error in the background thread")


_threads: dict[str, Background] = {}
_lock = threading.Lock()


def background() -> Background:
    """The thread of this process; it is started now if there is none."""
    return _thread("multisocket")


def mover() -> Background:
    """A second one, for connections whose bytes go through Python: they keep it busy."""
    return _thread("multisocket-mover")


def _thread(name: str) -> Background:
    with _lock:
        if name not in _threads:
            _threads[name] = Background(name)
        return _threads[name]


def stop() -> None:
    """Ends the threads, if there are any."""
    with _lock:
        threads = list(_threads.values())
        _threads.clear()
    for thread in threads:
        thread.stop()


def is_background_thread() -> bool:
    """Whether the caller runs in one of the threads, and so must not wait for them."""
    return any(thread.is_current_thread for thread in list(_threads.values()))


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    threads = list(_threads.values())
    _threads.clear()
    for thread in threads:
        thread.abandon()


os.register_at_fork(after_in_child=_after_fork)
