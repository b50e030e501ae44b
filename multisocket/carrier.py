"""The threads that move the bytes of this process's network connections: started with the first of them.

They are native (``shm/carrier.h``). What they tell of connections arrives in the background thread.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from . import arena
from .background import background
from .shm import Carrier, Wire

_PERIOD = 1.0


class Driver(Protocol):
    """Who hears what happens to a wire, in the background thread: its ``driver``."""

    def on_end(self, reason: str) -> None:
        """The connection has ended, or must."""

    def on_writable(self) -> None:
        """There is something to be written. Only for those who move the bytes themselves."""

    def on_gone(self) -> None:
        """The carrier has closed the connection."""


_lock = threading.Lock()
_current: Carrier | None = None
_wires: set[Wire] = set()


def carry(wire: Wire, fd: int) -> None:
    """Begins to move the bytes of a wire.

    :param fd: a socket that belongs to the carrier from now on. -1: only tells what is to be written.
    :raises OSError: no thread or descriptor is left.
    """
    carrier = _carrier()
    _wires.add(wire)
    try:
        wire.start(carrier, fd)
    except BaseException:
        _wires.discard(wire)
        raise


def _carrier() -> Carrier:
    global _current
    with _lock:
        if _current is None:
            _current = carrier = Carrier()
            background().call(lambda: background().watch(carrier, lambda: _listen(carrier)))
            background().call_later(_PERIOD, _tend)
        return _current


def _listen(carrier: Carrier) -> None:
    for wire, what, reason in carrier.told():
        driver: Driver = wire.driver
        if what == "end":
            driver.on_end(reason)
        elif what == "writable":
            driver.on_writable()
        else:
            _wires.discard(wire)
            driver.on_gone()


def _tend() -> None:
    """The arenas into which large contents came need looking after."""
    if _current is None:
        return
    for wire in list(_wires):
        used = wire.used_arena()
        if used is not None:
            arena.tend(used)
    background().call_later(_PERIOD, _tend)


def stop() -> None:
    """Ends the threads, if there are any."""
    global _current
    with _lock:
        current, _current = _current, None
    if current is not None:
        background().end_with(lambda: background().unwatch(current))
        current.stop()
    _wires.clear()


def _forget_parents() -> None:
    global _current, _lock
    _lock = threading.Lock()
    _current = None
    _wires.clear()
    Carrier.abandon()


os.register_at_fork(after_in_child=_forget_parents)
