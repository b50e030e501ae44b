"""Protocols: requests and replies, one at a time and many outstanding; publications to several subscribers.

Everybody is a process, over ipc. Publications count when all subscribers have heard them, and none may be lost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

from . import crew
from .crew import CONTEXT, CellFailed, Metrics, Ready, Role
from .measure import Job
from .peers import Asker, End, PublishPeer, RequestPeer, publish_peers, request_peers, window_peers
from .plan import Cell, Layout, Settings
from .progress import Progress

PART = "protocols"

OUTSTANDING = 100
"""Requests, where there is more than one at a time."""

REQUEST = Cell(PART, "request and reply", "ipc", 64, "median")
WINDOW = Cell(PART, f"{OUTSTANDING} requests outstanding", "ipc", 64)
PUBLISH = Cell(PART, "publications to all", "ipc", 64)

# Contents of other sizes than those that are measured. A subscriber hears this publisher; says when it has come to the
# mark; leaves.
_START, _MARK, _END = b"start", b"mark", b"end"

# Who waits for others to come or go looks so often, seconds.
_LOOK_TIME = 0.001


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for cell, ways, asks in ((REQUEST, request_peers(), _ask), (WINDOW, window_peers(), _ask_on)):
        for way in ways:
            yield Job(cell, way.side, partial(_measure_requests, way, cell, asks, settings))
    for publishes in publish_peers():
        yield Job(PUBLISH, publishes.side, partial(_measure_publications, publishes, settings))


# --- requests ---


def _measure_requests(peer: RequestPeer, cell: Cell, ask: Callable[..., list[Metrics]], settings: Settings) -> Metrics:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = Layout(cell.transport, cell.size, directory, duplex=True)
        progress = Progress(1, 1)
        roles = [
            Role(_reply, (peer, layout, progress)),
            Role(ask, (peer, layout, progress, settings.warm_up, settings.window)),
        ]
        reports = crew.run(roles, deadline=settings.deadline)
    return reports[0]


def _reply(ready: Ready, peer: RequestPeer, layout: Layout, progress: Progress) -> list[Metrics]:
    replier = peer.replier(layout)
    ready()
    replier.serve(layout.size)
    progress.receiver_left(0)
    replier.close()
    return []


def _ask(
    ready: Ready, peer: RequestPeer, layout: Layout, progress: Progress, warm_up: float, window: float
) -> list[Metrics]:
    asker = peer.asker(layout)
    ready()
    _trips(asker.ask, layout.size, warm_up)
    times = sorted(_trips(asker.ask, layout.size, window))
    _end(asker, progress)
    return [{"median": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}]


def _trips(ask: Callable[[bytes], object], size: int, duration: float) -> list[float]:
    content = bytes(size)
    clock = time.perf_counter
    times: list[float] = []
    last = clock() + duration
    while True:
        begin = clock()
        ask(content)
        end = clock()
        times.append(end - begin)
        if end >= last:
            return times


def _ask_on(
    ready: Ready, peer: RequestPeer, layout: Layout, progress: Progress, warm_up: float, window: float
) -> list[Metrics]:
    asker = peer.asker(layout)
    ready()
    content = bytes(layout.size)
    for _ in repeat(None, OUTSTANDING):
        asker.submit(content)
    turn = partial(asker.turn, content, layout.chunk)
    _repeat_for(turn, warm_up)
    turns, seconds = _repeat_for(turn, window)
    _end(asker, progress)
    return [{"rate": turns * layout.chunk / seconds}]


def _end(asker: Asker, progress: Progress) -> None:
    asker.submit(_END)
    # Some libraries drop what is not yet sent when they are closed.
    _wait_for(progress.all_left)
    asker.close()


# --- publications ---


def _measure_publications(peer: PublishPeer, settings: Settings) -> Metrics:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = Layout(PUBLISH.transport, PUBLISH.size, directory, receivers=settings.workers)
        progress = Progress(1, layout.receivers)
        arrivals = CONTEXT.Semaphore(0)
        roles = [
            Role(_publish, (peer, layout, progress, arrivals, settings.warm_up, settings.window)),
            *(Role(_hear, (peer, layout, progress, arrivals, index)) for index in range(layout.receivers)),
        ]
        reports = crew.run(roles, deadline=settings.deadline)
    heard = [report["heard"] for report in reports if "heard" in report]
    (publisher,) = (report for report in reports if "rate" in report)
    if any(count != publisher["published"] for count in heard):
        raise CellFailed(f"of {publisher['published']:.0f} publications, {min(heard):.0f} came")
    return {"rate": publisher["rate"]}


def _publish(
    ready: Ready, peer: PublishPeer, layout: Layout, progress: Progress, arrivals: Any, warm_up: float, window: float
) -> list[Metrics]:
    end = peer.publisher(layout)
    ready()
    while not progress.all_started():
        end.send(_START)
        progress.sender_started(0)
        time.sleep(_LOOK_TIME)
    warmed, _ = _publish_for(peer, end, layout, arrivals, warm_up)
    published, seconds = _publish_for(peer, end, layout, arrivals, window)
    end.send(_END)
    _wait_for(progress.all_left)
    end.close()
    return [{"rate": published / seconds, "published": warmed + published}]


def _publish_for(peer: PublishPeer, end: End, layout: Layout, arrivals: Any, duration: float) -> tuple[int, float]:
    """How many publications in how many seconds, until the last one is everywhere."""
    content = bytes(layout.size)
    chunk, send = peer.most_unacknowledged or layout.chunk, end.send

    def publish() -> None:
        for _ in repeat(None, chunk):
            send(content)
        if peer.most_unacknowledged is not None:
            arrive()

    def arrive() -> None:
        send(_MARK)
        for _ in repeat(None, layout.receivers):
            arrivals.acquire()

    begin = time.perf_counter()
    turns, _ = _repeat_for(publish, duration)
    arrive()
    return turns * chunk, time.perf_counter() - begin


def _hear(
    ready: Ready, peer: PublishPeer, layout: Layout, progress: Progress, arrivals: Any, index: int
) -> list[Metrics]:
    subscription = peer.subscriber(layout)
    ready()
    heard, last = 0, b""
    while last != _END:
        count, last = subscription.count(layout.size)
        heard += count
        if last == _START:
            progress.receiver_started(index)
        elif last == _MARK:
            arrivals.release()
    progress.receiver_left(index)
    subscription.close()
    return [{"heard": heard}]


# --- both ---


def _repeat_for(turn: Callable[[], object], duration: float) -> tuple[int, float]:
    """Turns made for so many seconds; how many in how many seconds it was."""
    turns = 0
    begin = now = time.perf_counter()
    while now - begin < duration:
        turn()
        turns += 1
        now = time.perf_counter()
    return turns, now - begin


def _wait_for(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(_LOOK_TIME)
