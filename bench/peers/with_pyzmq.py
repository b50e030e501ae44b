"""pyzmq: PUSH and PULL one way, PAIR or REQ and REP both ways; with and without copying; and its protocols."""

from __future__ import annotations

import functools
from itertools import repeat
from typing import Any

import zmq
import zmq.asyncio

from ..plan import KIB, Layout, Side
from .interface import (
    SEND_TIMEOUT,
    Asker,
    AsyncEnd,
    AsyncPeer,
    End,
    Peer,
    PublishPeer,
    Replier,
    RequestPeer,
    ScalePeer,
    Subscription,
)

VERSION = f"{zmq.__version__} (libzmq {zmq.zmq_version()})"

# From here on pyzmq can do without copies (zmq.COPY_THRESHOLD); below, copy=False copies too.
_NO_COPY_SIZE = 64 * KIB


def _open(
    kind: int,
    address: str,
    *,
    listens: bool,
    layout: Layout,
    queue: int | None = None,
    timeout: float | None = SEND_TIMEOUT,
    context: type[zmq.Context[Any]] = zmq.Context,
) -> Any:
    # inproc needs one context for both threads.
    sock = context.instance().socket(kind)
    if not layout.duplex:
        # There and back, few messages are on their way; and a REQ with a low mark may hang over inproc.
        sock.set_hwm(layout.queue if queue is None else queue)
    sock.linger = 0
    sock.sndtimeo = -1 if timeout is None else int(timeout * 1000)
    if listens:
        sock.bind(address)
    else:
        sock.connect(address)
    return sock


class Plain(Peer):
    """``send`` and ``recv``, which copy."""

    side = Side("pyzmq")
    _forward = (zmq.PUSH, zmq.PULL)
    _duplex = (zmq.PAIR, zmq.PAIR)

    def _end(self, kind: int, address: str, listens: bool, layout: Layout) -> End:
        sock = _open(kind, address, listens=listens, layout=layout)
        return End(sock.close, sock.send, sock.recv, full=(zmq.Again,))

    def sender(self, way: str, layout: Layout) -> End:
        kind = (self._duplex if layout.duplex else self._forward)[0]
        return self._end(kind, way, layout.sender_listens, layout)

    def receiver(self, way: str, layout: Layout) -> End:
        kind = (self._duplex if layout.duplex else self._forward)[1]
        return self._end(kind, way, not layout.sender_listens, layout)


class NoCopy(Plain):
    """``copy=False`` on both sides. What is received is a ``zmq.Frame``, not yet bytes."""

    side = Side("pyzmq", "copy=False")

    def fits(self, layout: Layout) -> bool:
        return layout.size >= _NO_COPY_SIZE

    def _end(self, kind: int, address: str, listens: bool, layout: Layout) -> End:
        sock = _open(kind, address, listens=listens, layout=layout)
        send = functools.partial(sock.send, copy=False)
        return End(sock.close, send, functools.partial(sock.recv, copy=False), full=(zmq.Again,))


class Request(Plain):
    """REQ and REP instead of PAIR."""

    side = Side("pyzmq", "REQ/REP")
    _duplex = (zmq.REQ, zmq.REP)

    def fits(self, layout: Layout) -> bool:
        return layout.duplex


class Ask(RequestPeer):
    """REQ and REP: one request is outstanding."""

    side = Side("pyzmq", "REQ/REP")

    def asker(self, layout: Layout) -> Asker:
        sock = _open(zmq.REQ, layout.address, listens=False, layout=layout)
        send, recv = sock.send, sock.recv

        def ask(content: bytes) -> bytes:
            send(content)
            reply: bytes = recv()
            return reply

        return Asker(sock.close, ask, send)

    def replier(self, layout: Layout) -> Replier:
        sock = _open(zmq.REP, layout.address, listens=True, layout=layout)
        send, recv = sock.send, sock.recv

        def serve(size: int) -> None:
            while True:
                content = recv()
                send(content)
                if len(content) != size:
                    return

        return Replier(sock.close, serve)


class AskMany(RequestPeer):
    """DEALER and ROUTER: many requests are outstanding. One server replies in order, so they need no numbers."""

    side = Side("pyzmq", "DEALER/ROUTER")

    def asker(self, layout: Layout) -> Asker:
        sock = _open(zmq.DEALER, layout.address, listens=False, layout=layout)
        send, recv = sock.send, sock.recv

        def turn(content: bytes, times: int) -> None:
            for _ in repeat(None, times):
                recv()
                send(content)

        return Asker(sock.close, submit=send, turn=turn)

    def replier(self, layout: Layout) -> Replier:
        sock = _open(zmq.ROUTER, layout.address, listens=True, layout=layout)
        send, recv = sock.send_multipart, sock.recv_multipart

        def serve(size: int) -> None:
            while True:
                parts = recv()
                send(parts)
                if len(parts[-1]) != size:
                    return

        return Replier(sock.close, serve)


class Publish(PublishPeer):
    """PUB and SUB, topic and content in one frame; the publisher waits at its high water mark."""

    side = Side("pyzmq", "PUB/SUB, XPUB_NODROP")
    _topic = b"bench"

    def publisher(self, layout: Layout) -> End:
        sock = self._open(zmq.PUB, layout, listens=True)
        sock.set(zmq.XPUB_NODROP, self.most_unacknowledged is None)
        send, topic = sock.send, self._topic
        return End(sock.close, lambda content: send(topic + content))

    def subscriber(self, layout: Layout) -> Subscription:
        sock = self._open(zmq.SUB, layout, listens=False)
        sock.subscribe(self._topic)
        recv, start = sock.recv, len(self._topic)

        def count(size: int) -> tuple[int, bytes]:
            heard = 0
            while len(content := recv()[start:]) == size:
                heard += 1
            return heard, content

        return Subscription(sock.close, count)

    def _open(self, kind: int, layout: Layout, *, listens: bool) -> Any:
        queue = None if self.most_unacknowledged is None else 2 * self.most_unacknowledged
        return _open(kind, layout.address, listens=listens, layout=layout, queue=queue, timeout=None)


class PublishAcknowledged(Publish):
    """The publisher never reaches its high water mark, as it waits for acknowledgements before."""

    side = Side("pyzmq", "PUB/SUB, acknowledged")
    most_unacknowledged = 10_000


class Async(AsyncPeer):
    """``zmq.asyncio``: PUSH and PULL one way, PAIR both ways."""

    side = Side("pyzmq")
    _duplex = (zmq.PAIR, zmq.PAIR)

    async def sender(self, layout: Layout) -> AsyncEnd:
        kind = self._duplex[0] if layout.duplex else zmq.PUSH
        return self._end(kind, layout, listens=False)

    async def receiver(self, layout: Layout) -> AsyncEnd:
        kind = self._duplex[1] if layout.duplex else zmq.PULL
        return self._end(kind, layout, listens=True)

    def _end(self, kind: int, layout: Layout, *, listens: bool) -> AsyncEnd:
        context = zmq.asyncio.Context
        sock = _open(kind, layout.address, listens=listens, layout=layout, timeout=None, context=context)

        async def close() -> None:
            sock.close()

        return AsyncEnd(close, sock.send, sock.recv)


class AsyncRequest(Async):
    """REQ and REP instead of PAIR."""

    side = Side("pyzmq", "REQ/REP")
    _duplex = (zmq.REQ, zmq.REP)

    def fits(self, layout: Layout) -> bool:
        return layout.duplex


class Scale(ScalePeer):
    """DEALER clients and a ROUTER, which has no send to all: it is a send to each."""

    side = Side("pyzmq")

    def __init__(self, address: str, clients: int) -> None:
        self._address = address
        self._context = zmq.Context()
        self._context.max_sockets = clients + 8
        self._server = self._context.socket(zmq.ROUTER)
        self._server.linger = 0
        self._server.router_mandatory = True
        self._server.bind(address)
        self._clients: list[zmq.Socket[bytes]] = []
        self._names: list[bytes] = []

    def add_client(self) -> None:
        client = self._context.socket(zmq.DEALER)
        client.linger = 0
        # A name of its own, known beforehand, lets the server send to a client it has not heard of.
        name = b"c%d" % len(self._clients)
        client.routing_id = name
        client.connect(self._address)
        self._clients.append(client)
        self._names.append(name)

    def ask_all(self, content: bytes) -> None:
        for client in self._clients:
            client.send(content)

    def answer_all(self) -> None:
        for _ in self._clients:
            self._server.send_multipart(self._server.recv_multipart())

    def hear_all(self) -> None:
        for client in self._clients:
            client.recv()

    def tell_all(self, content: bytes) -> None:
        for name in self._names:
            self._server.send_multipart((name, content))

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.close()
        self._context.term()
