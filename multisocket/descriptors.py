"""Sockets that no child made by fork keeps open.

A peer must see the death of a process although its children live on; so a child gives up its copies, without a word to
the other ends. That needs to know of every socket from the instant it is made.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from .late import late

if TYPE_CHECKING:
    import socket

    T = TypeVar("T", bound=socket.socket)
else:
    socket = late("socket")
    T = TypeVar("T")

# Held while a socket is made, and while the process forks: nothing in between blocks.
_making = threading.Lock()
_made: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def own(make: Callable[[], T]) -> T:
    """Makes a socket that is only this process's.

    :param make: must not block.
    """
    with _making:
        one = make()
        _made.add(one)
        return one


def blank(descriptors: Iterable[int]) -> None:
    """In a forked child: gives up copies. Their numbers stay taken, as others may still close them."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _give_up_all() -> None:
    global _making
    _making = threading.Lock()
    for one in list(_made):
        with contextlib.suppress(OSError):
            os.close(one.detach())  # without a warning that it was not closed
    _made.clear()


os.register_at_fork(
    before=lambda: _making.acquire(), after_in_parent=lambda: _making.release(), after_in_child=_give_up_all
)
