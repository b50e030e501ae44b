"""Round trip: how long a message takes to the other side and back.

Busy: both sides answer at once, again and again. Idle: the client sleeps before each, so that both sides
are asleep when the message is sent.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial

from . import crew
from .crew import Metrics, Ready, Role
from .measure import Job
from .peers import End, Peer, peers
from .plan import Cell, Layout, Settings
from .progress import Progress

PART = "roundtrip"
BUSY, IDLE = "busy", "idle"
METRIC = "median"

IDLE_SECONDS = 0.002
"""How long the client sleeps before each message, when idle."""

_IDLE_SIZES = (64,)

# Idle round trips are few, so they get more time.
_IDLE_WINDOWS = 2

# No content that is measured is so short.
_END = b"."


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for transport in ("ipc", "tcp", "inproc"):
        for kind, sizes in ((BUSY, settings.sizes), (IDLE, _IDLE_SIZES)):
            for size in sizes:
                for peer in peers():
                    if peer.fits(Layout(transport, size, "", duplex=True)):
                        run = partial(_measure, peer, transport, size, kind, settings)
                        yield Job(Cell(PART, kind, transport, size, METRIC), peer.side, run)


def _measure(peer: Peer, transport: str, size: int, kind: str, settings: Settings) -> Metrics:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = Layout(transport, size, directory, duplex=True)
        channel = peer.channel(layout)
        progress = Progress(1, 1)
        idle = IDLE_SECONDS if kind == IDLE else 0.0
        window = settings.window * (_IDLE_WINDOWS if kind == IDLE else 1)
        try:
            reports = crew.run(
                [
                    Role(_pong, (peer, channel.receivers[0], layout, progress)),
                    Role(_ping, (peer, channel.senders[0], layout, progress, idle, settings.warm_up, window)),
                ],
                deadline=settings.deadline,
                in_threads=transport == "inproc",
                on_started=channel.release,
            )
        finally:
            channel.close()
    return reports[0]


def _pong(ready: Ready, peer: Peer, way: object, layout: Layout, progress: Progress) -> list[Metrics]:
    end = peer.receiver(way, layout)
    ready()
    send, recv, size = end.send, end.recv, layout.size
    while len(content := recv()) == size:
        send(content)
    progress.receiver_left(0)
    end.close()
    return []


def _ping(
    ready: Ready,
    peer: Peer,
    way: object,
    layout: Layout,
    progress: Progress,
    idle: float,
    warm_up: float,
    window: float,
) -> list[Metrics]:
    end = peer.sender(way, layout)
    ready()
    _trips(end, layout.size, idle, warm_up)
    times = sorted(_trips(end, layout.size, idle, window))
    end.send(_END)
    # Some libraries drop what is not yet sent when they are closed.
    while not progress.all_left():
        time.sleep(0.001)
    end.close()
    return [{"median": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}]


def _trips(end: End, size: int, idle: float, duration: float) -> list[float]:
    """The times of round trips made for so many seconds, in seconds."""
    content = bytes(size)
    send, recv, clock = end.send, end.recv, time.perf_counter
    times: list[float] = []
    last = clock() + duration
    while True:
        if idle:
            time.sleep(idle)
        begin = clock()
        send(content)
        recv()
        end_time = clock()
        times.append(end_time - begin)
        if end_time >= last:
            return times
