"""How an event loop waits for messages.

Whoever finds nothing to take leaves a call here. Then the loop looks again each time it comes round, for as long as
that has paid off lately (like a thread that spins), but never keeps its other tasks waiting. After that it sleeps as
ever, and a lookout (shm/lookout.h) makes a descriptor of the loop readable when something comes: one thread for a
hundred Sockets, whatever the number of tasks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from ..shm import Lookout, get_spin
from ..socket import Socket

Call = Callable[[], None]

# A loop that sleeps takes longer to wake than a thread, so looking pays off for longer.
_SPIN_FACTOR = 3

# On one, looking only keeps the others from what is looked for.
_PROCESSORS = len(os.sched_getaffinity(0))

# How often it is found out whether the owners of other processes' Sockets still live, seconds.
_LOOK_AROUND_TIME = 1.0


class Waiting:
    """What waits in one event loop. Only that loop's thread uses it.

    :param loop: the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: dict[Socket, deque[Call]] = {}
        # Those that are looked at in turns; the others are the lookouts'.
        self._looked_at: dict[Socket, None] = {}
        self._is_looking = False
        self._look_until = 0.0
        self._allowed = _limit()
        self._slept_at = 0.0
        self._lookouts: list[Lookout] = []
        self._looks_around = False

    def add(self, sock: Socket, call: Call) -> None:
        """Has it called once when a receive from the Socket would end at once."""
        calls = self._calls.get(sock)
        if calls is None:
            calls = self._calls[sock] = deque()
            self._look_at(sock)
        calls.append(call)
        if not sock._is_owner and not self._looks_around:
            self._looks_around = True
            self._loop.call_later(_LOOK_AROUND_TIME, self._look_around)

    def remove(self, sock: Socket, call: Call) -> None:
        """Takes back :meth:`add`; nothing happens if it has been called."""
        calls = self._calls.get(sock)
        if calls is None or call not in calls:
            return
        calls.remove(call)
        if not calls:
            self._give_up(sock)

    def look_again(self, sock: Socket) -> None:
        """Somebody was called, but has taken nothing: others may."""
        if sock in self._calls:
            self._look_at(sock)

    def stop(self) -> None:
        """Ends the threads. Nothing waits any more."""
        for lookout in self._lookouts:
            lookout.stop()
            if not self._loop.is_closed():
                self._loop.remove_reader(lookout.fileno())
        self._lookouts.clear()
        self._calls.clear()
        self._looked_at.clear()

    @property
    def is_idle(self) -> bool:
        """Nothing waits."""
        return not self._calls

    def _give_up(self, sock: Socket) -> None:
        del self._calls[sock]
        if sock in self._looked_at:
            del self._looked_at[sock]
            return
        for lookout in self._lookouts:
            lookout.forget(sock)

    def _call_ready(self, sock: Socket) -> bool:
        """Calls as many as there are messages; whether there were any."""
        depth = sock._depth
        calls = self._calls.get(sock)
        if not depth or calls is None:
            return False
        ready = [calls.popleft() for _ in range(min(depth, len(calls)))]
        if not calls:
            del self._calls[sock]
            self._looked_at.pop(sock, None)
        for call in ready:
            call()
        return True

    # --- looking ---

    def _look_at(self, sock: Socket) -> None:
        self._looked_at[sock] = None
        self._look_until = time.monotonic() + self._allowed
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        found = [self._call_ready(sock) for sock in list(self._looked_at)]
        now = time.monotonic()
        if any(found):
            self._allowed = _limit()
            self._look_until = now + self._allowed
        if not self._looked_at:
            self._is_looking = False
        elif now < self._look_until:
            os.sched_yield()  # where processors are scarce, the one that it waits for may wait for ours
            self._loop.call_soon(self._look)
        else:
            self._sleep()

    # --- sleeping ---

    def _sleep(self) -> None:
        self._is_looking = False
        self._slept_at = time.monotonic()
        for sock in list(self._looked_at):
            if self._is_watched(sock):
                del self._looked_at[sock]
            else:
                self._look_at(sock)

    def _is_watched(self, sock: Socket) -> bool:
        """False: something is there already."""
        for lookout in self._lookouts:
            watches = lookout.watch(sock)
            if watches is not None:
                return watches
        return bool(self._new_lookout().watch(sock))

    def _new_lookout(self) -> Lookout:
        lookout = Lookout()
        self._lookouts.append(lookout)
        self._loop.add_reader(lookout.fileno(), self._poked, lookout)
        threading.Thread(target=lookout.run, name="multisocket-lookout", daemon=True).start()
        return lookout

    def _poked(self, lookout: Lookout) -> None:
        self._learn(time.monotonic() - self._slept_at)
        for sock in lookout.struck():
            assert isinstance(sock, Socket)
            self._call_ready(sock)
            if sock in self._calls:  # more wait, or somebody else was faster
                self._look_at(sock)

    def _learn(self, slept: float) -> None:
        """As threads do (see ring.c): a short sleep earns the full time for looking, each longer one halves it."""
        self._allowed = _limit() if slept <= _limit() else self._allowed / 2

    def _look_around(self) -> None:
        """An owner that was killed closes nothing, so somebody has to find out."""
        others = [sock for sock in self._calls if not sock._is_owner]
        for sock in others:
            sock._look_around()
        self._looks_around = bool(others)
        if others:
            self._loop.call_later(_LOOK_AROUND_TIME, self._look_around)


def _limit() -> float:
    return _SPIN_FACTOR * get_spin() if _PROCESSORS > 1 else 0.0


_of_loops: dict[asyncio.AbstractEventLoop, Waiting] = {}


def waiting() -> Waiting:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        _forget_closed_loops()
        found = _of_loops[loop] = Waiting(loop)
    return found


def _forget_closed_loops() -> None:
    for loop, its in list(_of_loops.items()):
        if loop.is_closed():
            del _of_loops[loop]
            its.stop()


# The loops and threads are the parent's.
os.register_at_fork(after_in_child=_of_loops.clear)
