"""Connection scale: very many client sockets and one server, in one process over inproc.

Each client sends and gets a reply, some times over; then the server sends to all, some times over. Everything
happens in one thread, so the times are the libraries' own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from functools import partial

from . import crew
from .crew import Metrics, Ready, Role
from .measure import Job
from .peers import ScalePeer, scale_peers
from .plan import Cell, Settings

PART = "scale"
TURNS = 10
"""How often each client asks, and how often the server tells all."""

METRICS = ("connect", "reply", "send_all", "close", "memory", "descriptors")
"""What is reported, per client."""

_SIZE = 64

# Ten thousand sockets take their time to open and close.
_DEADLINES = 6
_MOST_ROUNDS = 3


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    cell = Cell(PART, f"{settings.clients} clients", "inproc", _SIZE, "reply")
    for peer in scale_peers():
        yield Job(cell, peer.side, partial(_measure, peer, settings), _MOST_ROUNDS)


def _measure(peer: type[ScalePeer], settings: Settings) -> Metrics:
    role = Role(_run, (peer, settings.clients))
    return crew.run([role], deadline=_DEADLINES * settings.deadline)[0]


def _run(ready: Ready, kind: type[ScalePeer], clients: int) -> list[Metrics]:
    ready()
    _allow_descriptors()
    memory, descriptors = _memory(), _descriptors()
    watch = _Watch()
    peer = kind("inproc://scale", clients)
    for _ in range(clients):
        peer.add_client()
    peer.settle()
    metrics = {"connect": watch.lap() / clients}
    content = bytes(_SIZE)
    for _ in range(TURNS):
        peer.ask_all(content)
        peer.answer_all()
        peer.hear_all()
    metrics["reply"] = watch.lap() / (clients * TURNS)
    for _ in range(TURNS):
        peer.tell_all(content)
        peer.hear_all()
    metrics["send_all"] = watch.lap() / (clients * TURNS)
    metrics["memory"] = (_memory() - memory) / clients
    metrics["descriptors"] = (_descriptors() - descriptors) / clients
    watch.lap()
    peer.close()
    metrics["close"] = watch.lap() / clients
    return [metrics]


class _Watch:
    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        begin, self._begin = self._begin, time.perf_counter()
        return self._begin - begin


def _allow_descriptors() -> None:
    """Some libraries need a descriptor or more for each socket."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _memory() -> int:
    """Bytes of memory that this process uses, shared memory that it touched included."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
