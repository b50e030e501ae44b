"""The standard library: multiprocessing.Queue and multiprocessing.Pipe. Made for processes, so ipc only."""

from __future__ import annotations

import functools
import itertools
import queue
import selectors
from multiprocessing.connection import Connection
from typing import Any

from ..crew import CONTEXT
from ..plan import Layout, Side
from .interface import SEND_TIMEOUT, Channel, End, Peer


class Queue(Peer):
    """One queue for all senders and receivers; a second one for the way back."""

    side = Side("multiprocessing.Queue")
    transports = frozenset({"ipc"})

    def channel(self, layout: Layout) -> Channel:
        there = CONTEXT.Queue(layout.queue)
        back = CONTEXT.Queue(layout.queue) if layout.duplex else there
        return Channel([(there, back)] * layout.senders, [(back, there)] * layout.receivers)

    def sender(self, way: Any, layout: Layout) -> End:
        return self._end(*way)

    def receiver(self, way: Any, layout: Layout) -> End:
        return self._end(*way)

    def _end(self, out: Any, into: Any) -> End:
        def close() -> None:
            # Nobody takes what its thread has not written yet.
            out.cancel_join_thread()

        put = functools.partial(out.put, block=True, timeout=SEND_TIMEOUT)
        return End(close, put, into.get, full=(queue.Full,))


class Pipe(Peer):
    """A pipe for each sender and receiver, as processes cannot share an end; fan-out takes turns."""

    side = Side("multiprocessing.Pipe")
    transports = frozenset({"ipc"})

    def channel(self, layout: Layout) -> Channel:
        pairs = [CONTEXT.Pipe(duplex=layout.duplex) for _ in range(max(layout.senders, layout.receivers))]
        receivers, senders = [pair[0] for pair in pairs], [pair[1] for pair in pairs]

        def release() -> None:
            # A sender must see that the last receiver is gone.
            for connection in receivers + senders:
                connection.close()

        return Channel(_dealt(senders, layout.senders), _dealt(receivers, layout.receivers), release, release)

    def sender(self, way: list[Connection], layout: Layout) -> End:
        if len(way) == 1:
            return _end(way, way[0].send_bytes, way[0].recv_bytes)
        turns = itertools.cycle([connection.send_bytes for connection in way])
        return _end(way, lambda content: next(turns)(content), way[0].recv_bytes)

    def receiver(self, way: list[Connection], layout: Layout) -> End:
        if len(way) == 1:
            return _end(way, way[0].send_bytes, way[0].recv_bytes)
        return _end(way, way[0].send_bytes, _Merged(way).recv)


def _dealt(connections: list[Any], participants: int) -> list[list[Any]]:
    """All to the one participant, or one to each."""
    return [connections] if participants == 1 else [[one] for one in connections]


def _end(connections: list[Connection], send: Any, recv: Any) -> End:
    def close() -> None:
        for connection in connections:
            connection.close()

    return End(close, send, recv, full=(BrokenPipeError,))


class _Merged:
    """Receives from many pipes, from each that has something in turn."""

    def __init__(self, connections: list[Connection]) -> None:
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ, connection.recv_bytes)
        self._ready: list[Any] = []

    def recv(self) -> bytes:
        while not self._ready:
            self._ready = [key.data for key, _ in self._selector.select()]
        content: bytes = self._ready.pop()()
        return content
