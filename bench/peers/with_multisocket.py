"""multisocket: one message a call, in batches, and with workers that share one Socket."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from functools import partial
from itertools import repeat
from typing import Any

import multisocket as ms
from multisocket import aio
from multisocket.protocol import Pub, Rep, Req, Sub

from ..plan import Layout, Side
from .interface import (
    SEND_TIMEOUT,
    Asker,
    AsyncEnd,
    AsyncPeer,
    Channel,
    End,
    Peer,
    PublishPeer,
    Replier,
    RequestPeer,
    ScalePeer,
    Subscription,
)

VERSION = ms.__version__

_DEFAULT_QUEUE_BYTES = 4 << 20

# Publications that a subscriber takes with one call.
_MOST_AT_ONCE = 256


def _open(layout: Layout, **options: Any) -> ms.Socket:
    # Only a content that does not fit well needs more than the default.
    queue = max(_DEFAULT_QUEUE_BYTES, 4 * layout.size)
    return ms.Socket(recv_queue_bytes=queue, send_timeout=SEND_TIMEOUT, send_stop_timeout=0.0, **options)


def _connect(sock: ms.Socket, address: str, *, listens: bool) -> ms.Socket:
    if listens:
        sock.listen(address)
    else:
        sock.dial(address)
    return sock


def _end(sock: ms.Socket) -> End:
    return End(sock.close, sock.send, sock.recv, full=(ms.Timeout,))


def _batch_end(sock: ms.Socket) -> End:
    return End(sock.close, send_many=sock.send_many, recv_many=sock.recv_many, full=(ms.Timeout,))


class Plain(Peer):
    """``send`` and ``recv``."""

    side = Side("multisocket")
    _end = staticmethod(_end)

    def sender(self, way: str, layout: Layout) -> End:
        sock = _open(layout, no_recv=not layout.duplex)
        return self._end(_connect(sock, way, listens=layout.sender_listens))

    def receiver(self, way: str, layout: Layout) -> End:
        sock = _open(layout, no_send=not layout.duplex)
        return self._end(_connect(sock, way, listens=not layout.sender_listens))


class Batches(Plain):
    """``send_many`` and ``recv_many``, as far as batches of that size are any use."""

    side = Side("multisocket", "batches")
    _end = staticmethod(_batch_end)

    def fits(self, layout: Layout) -> bool:
        return layout.batch > 1 and layout.senders == layout.receivers == 1 and not layout.duplex


class Shared(Peer):
    """All receivers are workers that share one Socket, so that a message goes to whoever is free first."""

    side = Side("multisocket", "shared")

    def fits(self, layout: Layout) -> bool:
        return layout.receivers > 1

    def channel(self, layout: Layout) -> Channel:
        sock = _open(layout, no_send=True)
        sock.listen(layout.address)
        return Channel([layout.address], [sock] * layout.receivers, close=sock.close)

    def sender(self, way: str, layout: Layout) -> End:
        return _end(_connect(_open(layout, no_recv=True), way, listens=False))

    def receiver(self, way: ms.Socket, layout: Layout) -> End:
        return _end(way)


class Request(RequestPeer):
    """``Req`` and ``Rep``: ``request`` where one is outstanding, ``request_async`` where more are."""

    side = Side("multisocket")

    def asker(self, layout: Layout) -> Asker:
        req = Req(send_stop_timeout=0.0)
        req.dial(layout.address)
        waiting: deque[Future[bytes]] = deque()

        def submit(content: bytes) -> None:
            waiting.append(req.request_async(content))

        def turn(content: bytes, times: int) -> None:
            for _ in repeat(None, times):
                waiting.popleft().result()
                waiting.append(req.request_async(content))

        return Asker(req.close, req.request, submit, turn)

    def replier(self, layout: Layout) -> Replier:
        rep = Rep(send_stop_timeout=0.0)
        rep.listen(layout.address)

        def serve(size: int) -> None:
            for request in rep:
                request.reply(request.content)
                if len(request.content) != size:
                    return

        return Replier(rep.close, serve)


class Publish(PublishPeer):
    """``Pub`` and ``Sub``; the publisher waits for slow subscribers."""

    side = Side("multisocket")
    _topic = b"bench"

    def publisher(self, layout: Layout) -> End:
        pub = Pub(slow="block", send_stop_timeout=0.0)
        pub.listen(layout.address)
        return End(pub.close, partial(pub.send, self._topic))

    def subscriber(self, layout: Layout) -> Subscription:
        sub = Sub([self._topic], send_stop_timeout=0.0)
        sub.dial(layout.address)

        def count(size: int) -> tuple[int, bytes]:
            heard = 0
            while len((publication := sub.recv()).content) == size:
                heard += 1
            return heard, publication.content

        return Subscription(sub.close, count)


class PublishBatches(Publish):
    """The same; subscribers take what is there with one ``recv_many``."""

    side = Side("multisocket", "recv_many")

    def subscriber(self, layout: Layout) -> Subscription:
        sub = Sub([self._topic], send_stop_timeout=0.0)
        sub.dial(layout.address)

        def count(size: int) -> tuple[int, bytes]:
            heard = 0
            while True:
                publications = sub.recv_many(_MOST_AT_ONCE)
                last = publications[-1].content
                if len(last) != size or len(publications[0].content) != size:
                    # The publisher waits for us after it has sent one of these.
                    heard += sum(len(publication.content) == size for publication in publications)
                    return heard, last
                heard += len(publications)

        return Subscription(sub.close, count)


class Async(AsyncPeer):
    """``multisocket.aio.Socket``."""

    side = Side("multisocket")

    async def sender(self, layout: Layout) -> AsyncEnd:
        sock = aio.Socket(no_recv=not layout.duplex, send_stop_timeout=0.0)
        await sock.dial(layout.address)
        return AsyncEnd(sock.close, sock.send, sock.recv)

    async def receiver(self, layout: Layout) -> AsyncEnd:
        sock = aio.Socket(no_send=not layout.duplex, send_stop_timeout=0.0)
        await sock.listen(layout.address)
        return AsyncEnd(sock.close, sock.send, sock.recv)


class Scale(ScalePeer):
    """``recv_msg``, ``send_to`` and ``send_all``; clients with the smallest inbox."""

    side = Side("multisocket")

    def __init__(self, address: str, clients: int) -> None:
        self._address = address
        self._server = ms.Socket(recv_queue_size=2 * clients, send_stop_timeout=0.0)
        self._server.listen(address)
        self._clients: list[ms.Socket] = []

    def add_client(self) -> None:
        client = ms.Socket(recv_queue_bytes=4096, send_stop_timeout=0.0)
        self._clients.append(client)
        client.dial(self._address)

    def ask_all(self, content: bytes) -> None:
        for client in self._clients:
            client.send(content)

    def answer_all(self) -> None:
        for _ in self._clients:
            msg = self._server.recv_msg()
            self._server.send_to(msg.source, msg.content)

    def hear_all(self) -> None:
        for client in self._clients:
            client.recv()

    def tell_all(self, content: bytes) -> None:
        self._server.send_all(content)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.close()
