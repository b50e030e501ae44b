"""A transport of one's own: the example, and one that misbehaves."""

from __future__ import annotations

import logging
import random
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, until_full, wait_until
from multisocket.address import Address
from multisocket.background import mover
from multisocket.transport import register
from multisocket.transport.tcp import Tcp, TcpConnection

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import zip_tcp  # noqa: F401 - registers itself

Make = Callable[..., ms.Socket]


def pair(make_socket: Make, **options: Any) -> tuple[ms.Socket, ms.Socket]:
    server, client = make_socket(**options), make_socket()
    client.dial(server.listen("zip+tcp://127.0.0.1:0?level=1").address, level=9)
    return server, client


@pytest.mark.parametrize("size", [0, 10, 5000, 300_000, 5 << 20])
def test_both_ways(make_socket: Make, size: int) -> None:
    server, client = pair(make_socket)
    content = random.Random(size).randbytes(size)
    client.send(content)
    msg = server.recv_msg(DEADLINE)
    assert msg.content == content
    assert msg.is_remote
    server.send_to(msg.source, content)
    assert client.recv(DEADLINE) == content


def test_many_in_order(make_socket: Make, threads: Callable[..., threading.Thread]) -> None:
    server, client = pair(make_socket, recv_queue_size=100)
    contents = [b"%d" % i + bytes(i % 500) for i in range(10_000)]
    threads(lambda: client.send_many(contents, timeout=DEADLINE))
    assert [server.recv(DEADLINE) for _ in contents] == contents


def test_backpressure(make_socket: Make) -> None:
    server, client = pair(make_socket, recv_queue_size=5)
    chance = random.Random(1)
    contents = [chance.randbytes(100_000) for _ in range(400)]
    sent = contents[: until_full(lambda i: client.send(contents[i], timeout=0.2))]
    assert [server.recv(DEADLINE) for _ in sent] == sent


def test_close_sends_what_is_left(make_socket: Make) -> None:
    server = make_socket()
    with ms.Socket() as client:
        client.dial(server.listen("zip+tcp://127.0.0.1:0").address)
        contents = [b"%d" % i + bytes(1000) for i in range(2000)]
        client.send_many(contents)
    assert [server.recv(DEADLINE) for _ in contents] == contents
    wait_until(lambda: not server.pipes, "the server has heard of the end")


def test_reconnecting(make_socket: Make) -> None:
    server, client = pair(make_socket)
    address = client.pipes[0].address
    server.close()
    wait_until(lambda: not client.pipes, "the client has heard of the end")
    server = make_socket()
    server.listen(address)
    client.send(b"kept")
    assert server.recv(DEADLINE) == b"kept"


def test_garbage_ends_one_pipe_only(make_socket: Make, caplog: pytest.LogCaptureFixture) -> None:
    server, client = pair(make_socket)
    stranger = make_socket()
    with caplog.at_level(logging.INFO, "multisocket"):
        stranger.dial(client.pipes[0].address.replace("zip+", ""), reconnect=False)
        stranger.send(b"not compressed")
        wait_until(lambda: "incorrect header check" in caplog.text, "the reason is logged")
    client.send(b"fine")
    assert server.recv(DEADLINE) == b"fine"


def test_waiting_for_room_is_done_once(make_socket: Make) -> None:
    """However often something else happens meanwhile, one look at a time is due."""
    server, client = pair(make_socket, recv_queue_size=5)
    client.send(b"I am here")
    path = server.recv_msg(DEADLINE).source
    chance = random.Random(1)
    until_full(lambda i: client.send(chance.randbytes(50_000), timeout=0.2))
    most = 0
    for i in range(2000):
        server.send_to(path, b"%d" % i, timeout=DEADLINE)
        assert client.recv(DEADLINE) == b"%d" % i
        most = max(most, len(mover()._timers))
    assert most < 100


def test_close_sends_what_is_left_although_its_own_inbox_is_full(make_socket: Make) -> None:
    server = make_socket()
    contents = [b"%d" % i + bytes(1000) for i in range(2000)]
    with ms.Socket(recv_queue_size=5) as client:
        client.dial(server.listen("zip+tcp://127.0.0.1:0").address)
        client.send(b"I am here")
        path = server.recv_msg(DEADLINE).source
        until_full(lambda i: server.send_to(path, bytes(50_000), timeout=0.2))
        client.send_many(contents)
    assert [server.recv(DEADLINE) for _ in contents] == contents


class _Broken(TcpConnection):
    is_plain = False

    def write(self, data: memoryview) -> int:
        raise zlib.error("out of order")


class _BrokenTcp(Tcp):
    def dial(self, address: Address, options: Mapping[str, Any]) -> TcpConnection:
        made = super().dial(address, options)
        made.__class__ = _Broken
        return made


def test_an_exception_closes_the_pipe(make_socket: Make, caplog: pytest.LogCaptureFixture) -> None:
    """What was to be sent goes to another."""
    register("broken", _BrokenTcp())
    server, client = make_socket(), make_socket()
    address = server.listen("tcp://127.0.0.1:0").address
    client.dial(address.replace("tcp", "broken"), reconnect=False)
    with caplog.at_level(logging.INFO, "multisocket"):
        client.send(b"x")
        wait_until(lambda: "out of order" in caplog.text, "the reason is logged")
    client.dial(address)
    assert server.recv(DEADLINE) == b"x"
