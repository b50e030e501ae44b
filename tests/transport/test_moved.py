"""What holds for all transports whose bytes go through Python: tls+tcp, ws and wss."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, until_full, wait_until

from .conftest import Files

Make = Callable[..., ms.Socket]
Start = Callable[..., threading.Thread]


class Place:
    """Where to listen, and how."""

    def __init__(self, scheme: str, files: Files) -> None:
        self.address = f"{scheme}://localhost:0" + ("/chat" if scheme.startswith("ws") else "")
        is_safe = scheme in ("wss", "tls+tcp")
        self.listening: Mapping[str, Any] = {"certificate": files.certificate} if is_safe else {}
        self.dialing: Mapping[str, Any] = {"ca": files.ca} if is_safe else {}

    def listen(self, sock: ms.Socket, **options: Any) -> str:
        self.address = sock.listen(self.address, **self.listening, **options).address
        return self.address

    def dial(self, sock: ms.Socket, **options: Any) -> None:
        sock.dial(self.address, **self.dialing, **options)


@pytest.fixture(params=["tls+tcp", "ws", "wss"])
def place(request: pytest.FixtureRequest, files: Files) -> Place:
    return Place(request.param, files)


@pytest.fixture
def pair(make_socket: Make, place: Place) -> tuple[ms.Socket, ms.Socket]:
    server, client = make_socket(), make_socket()
    place.listen(server)
    place.dial(client)
    return server, client


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 1 << 20, 20 << 20])
def test_sizes_both_ways(pair: tuple[ms.Socket, ms.Socket], size: int) -> None:
    server, client = pair
    content = random.Random(size).randbytes(size)
    for _ in range(2):
        client.send(content)
        msg = server.recv_msg(DEADLINE)
        assert msg.content == content
        server.send_to(msg.source, content)
        assert client.recv(DEADLINE) == content


def test_many_in_order(pair: tuple[ms.Socket, ms.Socket], threads: Start) -> None:
    server, client = pair
    contents = [b"%d" % i + bytes(i % 300) for i in range(10_000)]
    threads(lambda: client.send_many(contents, timeout=DEADLINE))
    assert [server.recv(DEADLINE) for _ in contents] == contents


def test_both_ways_at_once(pair: tuple[ms.Socket, ms.Socket], threads: Start) -> None:
    contents = [b"%d" % i + bytes(50_000) for i in range(300)]
    for sock in pair:
        threads(lambda sock=sock: sock.send_many(contents, timeout=DEADLINE))
    for sock in pair:
        assert [sock.recv(DEADLINE) for _ in contents] == contents


@pytest.mark.parametrize("size", [100, 300_000])
def test_backpressure(make_socket: Make, place: Place, size: int) -> None:
    server, client = make_socket(recv_queue_size=5), make_socket()
    place.listen(server, read_buffer=65536)
    place.dial(client, write_buffer=65536, send_queue_bytes=65536)
    sent = until_full(lambda i: client.send(b"%d " % i + bytes(size), timeout=0.3))
    assert server.stats()["depth"] <= 5
    assert [int(server.recv(DEADLINE).split(b" ")[0]) for _ in range(sent)] == list(range(sent))
    client.send(b"goes on", timeout=DEADLINE)
    assert server.recv(DEADLINE) == b"goes on"


def test_close_sends_what_is_left(make_socket: Make, place: Place) -> None:
    server = make_socket()
    place.listen(server)
    contents = [b"%d" % i + bytes(1000) for i in range(2000)]
    with ms.Socket() as client:
        place.dial(client)
        client.send_many(contents)
    assert [server.recv(DEADLINE) for _ in contents] == contents
    wait_until(lambda: not server.pipes, "the server has heard of the end")


def test_reconnecting(make_socket: Make, place: Place) -> None:
    client, server = make_socket(), make_socket()
    place.listen(server)
    place.dial(client, min_reconnect_time=0.01)
    for i in range(3):
        server.close()
        wait_until(lambda: not client.pipes, "the client has heard of the end")
        server = make_socket()
        place.listen(server)
        client.send(b"%d" % i)
        assert server.recv(DEADLINE) == b"%d" % i


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_the_socket(pair: tuple[ms.Socket, ms.Socket], processes: Processes, method: str) -> None:
    server, client = pair
    worker = processes.start(_reply, server, method=method)
    for i in range(200):
        client.send(b"%d" % i + bytes(150_000 if i % 50 == 0 else 0))
    assert sorted(len(client.recv(DEADLINE)) for _ in range(200))[-4:] == [150_001, 150_002, 150_003, 150_003]
    client.send(b"end")
    processes.join(worker)


def _reply(sock: ms.Socket) -> None:
    for msg in sock:
        if msg.content == b"end":
            return
        sock.send_to(msg.source, msg.content, timeout=DEADLINE)


def test_a_peer_that_goes_leaves_others_alone(make_socket: Make, place: Place) -> None:
    server, good = make_socket(), make_socket()
    place.listen(server)
    place.dial(good)
    for _ in range(10):
        with ms.Socket() as passer_by:
            place.dial(passer_by, reconnect=False)
            passer_by.send(bytes(500_000))
        good.send(b"still here")
        assert sorted(len(server.recv(DEADLINE)) for _ in range(2)) == [10, 500_000]
    wait_until(lambda: len(server.pipes) == 1, "the others are gone")
