"""Messages that flow from senders to receivers, each a participant of its own: what rate and fan measure.

All receivers measure at the same time, and none of them the start: the clock runs when every sender has
sent and every receiver has received, and some time more has passed. Senders go on until every receiver has
left, so that nobody waits for a message in vain.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import repeat

from . import crew
from .crew import Metrics, Ready, Role
from .peers import Channel, End, Peer
from .plan import Layout, Settings
from .progress import Progress


def measure(
    peer: Peer, transport: str, size: int, settings: Settings, *, senders: int = 1, receivers: int = 1
) -> Metrics:
    """The ``rate``: messages a second, all receivers together.

    :raises CellFailed: no result, and why.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = Layout(transport, size, directory, senders, receivers)
        channel = peer.channel(layout)
        try:
            reports = crew.run(
                _roles(peer, layout, channel, settings),
                deadline=settings.deadline,
                in_threads=transport == "inproc",
                on_started=channel.release,
            )
        finally:
            channel.close()
    return {"rate": sum(report["rate"] for report in reports)}


def _roles(peer: Peer, layout: Layout, channel: Channel, settings: Settings) -> list[Role]:
    progress = Progress(layout.senders, layout.receivers)
    senders = [Role(_send, (peer, way, layout, progress, index)) for index, way in enumerate(channel.senders)]
    receivers = [
        Role(_receive, (peer, way, layout, progress, index, settings.warm_up, settings.window))
        for index, way in enumerate(channel.receivers)
    ]
    return senders + receivers if layout.sender_listens else receivers + senders


# --- a sender ---


def _send(
    ready: Ready,
    peer: Peer,
    way: object,
    layout: Layout,
    progress: Progress,
    index: int,
) -> list[Metrics]:
    end = peer.sender(way, layout)
    ready()
    give = _giver(end, layout)
    while not progress.all_left():
        try:
            give()
        except end.full:
            continue
        progress.sender_started(index)
    end.close()
    return []


def _giver(end: End, layout: Layout) -> Callable[[], None]:
    """Sends a chunk."""
    content = bytes(layout.size)
    send, send_many, chunk = end.send, end.send_many, layout.chunk
    if send_many is None:

        def give() -> None:
            for _ in repeat(None, chunk):
                send(content)

        return give

    batch = [content] * layout.batch
    batches = max(1, chunk // layout.batch)

    def give_batches() -> None:
        for _ in repeat(None, batches):
            send_many(batch)

    return give_batches


# --- a receiver ---


def _receive(
    ready: Ready,
    peer: Peer,
    way: object,
    layout: Layout,
    progress: Progress,
    index: int,
    warm_up: float,
    window: float,
) -> list[Metrics]:
    end = peer.receiver(way, layout)
    ready()
    take = _taker(end, layout)
    take()
    progress.receiver_started(index)
    while not progress.all_started():
        take()
    _take_for(take, warm_up)
    messages, seconds = _take_for(take, window)
    progress.receiver_measured(index)
    while not progress.all_measured():
        take()
    progress.receiver_left(index)
    end.close()
    return [{"rate": messages / seconds}]


def _taker(end: End, layout: Layout) -> Callable[[], int]:
    """Receives a chunk, and tells how many messages that were."""
    recv, recv_many, chunk = end.recv, end.recv_many, layout.chunk
    if recv_many is None:

        def take() -> int:
            for _ in repeat(None, chunk):
                recv()
            return chunk

        return take

    batch = layout.batch

    def take_batches() -> int:
        messages = 0
        while messages < chunk:
            messages += len(recv_many(batch))
        return messages

    return take_batches


def _take_for(take: Callable[[], int], duration: float) -> tuple[int, float]:
    """Receives for so many seconds; how many messages in how many seconds it was."""
    messages = 0
    begin = now = time.perf_counter()
    while now - begin < duration:
        messages += take()
        now = time.perf_counter()
    return messages, now - begin
