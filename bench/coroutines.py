"""asyncio: round trips and the rate from one sender to one receiver, both coroutines, each in a process of its own.

What roundtrip and rate measure, with an event loop on both sides.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

from . import crew
from .crew import Metrics, Ready, Role
from .measure import Job
from .peers import AsyncEnd, AsyncPeer, async_peers
from .plan import Cell, Layout, Settings
from .progress import Progress

PART = "asyncio"

TRIP = Cell(PART, "round trip", "ipc", 64, "median")
RATE = Cell(PART, "one to one", "ipc", 64)

# No content that is measured is so short.
_END = b"."

_LOOK_TIME = 0.001


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for cell, receive, send in ((TRIP, _pong, _ping), (RATE, _receive, _send)):
        for peer in async_peers():
            if peer.fits(Layout(cell.transport, cell.size, "", duplex=cell is TRIP)):
                yield Job(cell, peer.side, partial(_measure, peer, cell, receive, send, settings))


def _measure(
    peer: AsyncPeer, cell: Cell, receive: Callable[..., Any], send: Callable[..., Any], settings: Settings
) -> Metrics:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = Layout(cell.transport, cell.size, directory, duplex=cell is TRIP)
        args = (peer, layout, Progress(1, 1), settings)
        (metrics,) = crew.run([Role(_run, (receive, *args)), Role(_run, (send, *args))], deadline=settings.deadline)
    return metrics


def _run(ready: Ready, role: Callable[..., Any], *args: Any) -> list[Metrics]:
    metrics: list[Metrics] = asyncio.run(role(ready, *args))
    return metrics


# --- there and back ---


async def _pong(ready: Ready, peer: AsyncPeer, layout: Layout, progress: Progress, settings: Settings) -> list[Metrics]:
    end = await peer.receiver(layout)
    ready()
    send, recv, size = end.send, end.recv, layout.size
    while len(content := await recv()) == size:
        await send(content)
    progress.receiver_left(0)
    await end.close()
    return []


async def _ping(ready: Ready, peer: AsyncPeer, layout: Layout, progress: Progress, settings: Settings) -> list[Metrics]:
    end = await peer.sender(layout)
    ready()
    await _trips(end, layout.size, settings.warm_up)
    times = sorted(await _trips(end, layout.size, settings.window))
    await _end(end, progress)
    return [{"median": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}]


async def _trips(end: AsyncEnd, size: int, duration: float) -> list[float]:
    """The times of round trips made for so many seconds, in seconds."""
    content = bytes(size)
    send, recv, clock = end.send, end.recv, time.perf_counter
    times: list[float] = []
    last = clock() + duration
    while True:
        begin = clock()
        await send(content)
        await recv()
        end_time = clock()
        times.append(end_time - begin)
        if end_time >= last:
            return times


# --- one way ---


async def _send(ready: Ready, peer: AsyncPeer, layout: Layout, progress: Progress, settings: Settings) -> list[Metrics]:
    end = await peer.sender(layout)
    ready()
    content = bytes(layout.size)
    send = end.send
    while not progress.all_measured():
        for _ in repeat(None, layout.chunk):
            await send(content)
        progress.sender_started(0)
    await _end(end, progress)
    return []


async def _receive(
    ready: Ready, peer: AsyncPeer, layout: Layout, progress: Progress, settings: Settings
) -> list[Metrics]:
    end = await peer.receiver(layout)
    ready()
    recv, size = end.recv, layout.size

    async def take() -> None:
        for _ in repeat(None, layout.chunk):
            await recv()

    progress.receiver_started(0)
    while not progress.all_started():
        await take()
    await _take_for(take, settings.warm_up)
    chunks, seconds = await _take_for(take, settings.window)
    progress.receiver_measured(0)
    while len(await recv()) == size:
        pass
    progress.receiver_left(0)
    await end.close()
    return [{"rate": chunks * layout.chunk / seconds}]


async def _take_for(take: Callable[[], Awaitable[None]], duration: float) -> tuple[int, float]:
    """Receives for so many seconds; how many chunks in how many seconds it was."""
    chunks = 0
    begin = now = time.perf_counter()
    while now - begin < duration:
        await take()
        chunks += 1
        now = time.perf_counter()
    return chunks, now - begin


# --- both ---


async def _end(end: AsyncEnd, progress: Progress) -> None:
    await end.send(_END)
    # Some libraries drop what is not yet sent when they are closed.
    while not progress.all_left():
        await asyncio.sleep(_LOOK_TIME)
    await end.close()
