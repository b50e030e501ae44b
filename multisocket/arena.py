"""Looking after the arenas that this process writes to, now and then, in the background thread.

Once a second, while an arena has memory: blocks that dead receivers held are given back, and memory that was not needed
for a second goes back to the system. (Shorter, and a sender of one large message at a time would take new pages, which
the system clears, for each of them.)
"""

from __future__ import annotations

import contextlib
import os
import threading

from . import names
from .background import background
from .reclaim import sweep
from .shm import Arena

PERIOD = 1.0
"""Seconds between two looks."""

_tended: set[str] = set()
# While memory is given back it is in use: whoever closes the arena waits for that.
_looking = threading.Lock()


def tend(arena: Arena) -> None:
    """Looks after an arena until it needs nothing any more."""
    if arena.name in _tended:
        return
    _tended.add(arena.name)
    background().call_later(PERIOD, lambda: _look_after(arena))


def _look_after(arena: Arena) -> None:
    reclaim(arena)
    with _looking:
        has_memory = arena.rest()
        if arena.closed and arena.close():
            has_memory = False
    if has_memory:
        background().call_later(PERIOD, lambda: _look_after(arena))
    else:
        _tended.discard(arena.name)


def reclaim(arena: Arena) -> None:
    """Gives back what the dead held."""
    if arena.used:
        with contextlib.suppress(OSError):  # no descriptor is left to look at others: later
            sweep(arena, names.is_alive)


def close(arena: Arena) -> None:
    """The arena's Socket is closed: once nobody uses a block any more, it is removed."""
    reclaim(arena)
    with _looking:
        is_removed = arena.close()
    if not is_removed:
        tend(arena)


def _forget_parents() -> None:
    global _looking
    _looking = threading.Lock()
    _tended.clear()


os.register_at_fork(after_in_child=_forget_parents)
