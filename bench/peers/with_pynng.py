"""pynng: Push0 and Pull0, or Pair0; Req0 and Rep0."""

from __future__ import annotations

import time
from typing import Any

import pynng  # type: ignore[import-untyped]

from ..plan import Layout, Side
from .interface import SEND_TIMEOUT, Asker, End, Peer, Replier, RequestPeer, ScalePeer

VERSION = pynng.__version__

_MOST_BUFFERED = 8192
_SETTLE_SECONDS = 30.0


def _open(kind: Any, address: str, *, listens: bool, layout: Layout) -> Any:
    options: dict[str, Any] = {"listen": address} if listens else {"dial": address, "block_on_dial": True}
    if kind is not pynng.Pull0:
        options |= {
            "send_buffer_size": min(layout.queue, _MOST_BUFFERED),
            "send_timeout": int(SEND_TIMEOUT * 1000),
        }
    if kind is not pynng.Push0:
        options |= {"recv_buffer_size": min(layout.queue, _MOST_BUFFERED)}
    # By default, nothing above 1 MiB is let in.
    return kind(recv_max_size=0, **options)


class Plain(Peer):
    """``send`` and ``recv``; Push0 and Pull0 one way, Pair0 both ways."""

    side = Side("pynng")
    _forward: tuple[Any, Any] = (pynng.Push0, pynng.Pull0)
    _duplex: tuple[Any, Any] = (pynng.Pair0, pynng.Pair0)

    def _end(self, kind: Any, address: str, listens: bool, layout: Layout) -> End:
        sock = _open(kind, address, listens=listens, layout=layout)
        return End(sock.close, sock.send, sock.recv, full=(pynng.Timeout,))

    def sender(self, way: str, layout: Layout) -> End:
        kind = (self._duplex if layout.duplex else self._forward)[0]
        return self._end(kind, way, layout.sender_listens, layout)

    def receiver(self, way: str, layout: Layout) -> End:
        kind = (self._duplex if layout.duplex else self._forward)[1]
        return self._end(kind, way, not layout.sender_listens, layout)


class Pair(Plain):
    """Pair0 one way too: unlike Pull0, it can buffer what it receives."""

    side = Side("pynng", "Pair0")
    _forward = (pynng.Pair0, pynng.Pair0)

    def fits(self, layout: Layout) -> bool:
        return layout.senders == layout.receivers == 1 and not layout.duplex


class Ask(RequestPeer):
    """Req0 and Rep0: one request is outstanding."""

    side = Side("pynng", "Req0/Rep0")

    def asker(self, layout: Layout) -> Asker:
        sock = pynng.Req0(dial=layout.address, block_on_dial=True)
        send, recv = sock.send, sock.recv

        def ask(content: bytes) -> bytes:
            send(content)
            reply: bytes = recv()
            return reply

        return Asker(sock.close, ask, send)

    def replier(self, layout: Layout) -> Replier:
        sock = pynng.Rep0(listen=layout.address)
        send, recv = sock.send, sock.recv

        def serve(size: int) -> None:
            while True:
                content = recv()
                send(content)
                if len(content) != size:
                    return

        return Replier(sock.close, serve)


class Scale(ScalePeer):
    """Pair1 clients and a polyamorous Pair1, which has no send to all: it is a send to each pipe."""

    side = Side("pynng")

    def __init__(self, address: str, clients: int) -> None:
        self._address = address
        buffered = min(clients, _MOST_BUFFERED)
        self._server = pynng.Pair1(polyamorous=True, listen=address, recv_buffer_size=buffered)
        self._clients: list[Any] = []

    def add_client(self) -> None:
        # The send of a polyamorous server drops what finds no room, so a client has some.
        client = pynng.Pair1(dial=self._address, block_on_dial=True, send_buffer_size=1, recv_buffer_size=1)
        self._clients.append(client)

    def settle(self) -> None:
        end = time.monotonic() + _SETTLE_SECONDS
        while len(self._server.pipes) < len(self._clients):
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self._server.pipes)} of {len(self._clients)} are connected")
            time.sleep(0.001)

    def ask_all(self, content: bytes) -> None:
        for client in self._clients:
            client.send(content)

    def answer_all(self) -> None:
        for _ in self._clients:
            msg = self._server.recv_msg()
            msg.pipe.send(msg.bytes)

    def hear_all(self) -> None:
        for client in self._clients:
            client.recv()

    def tell_all(self, content: bytes) -> None:
        for pipe in self._server.pipes:
            pipe.send(content)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.close()
