"""Raw pipes: plain byte streams of programs that know nothing of us."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, free_port, until_full, wait_until
from multisocket.message import RAW, Message

Make = Callable[..., ms.Socket]


@pytest.fixture(params=["tcp", "ipc"])
def place(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"tcp://127.0.0.1:{free_port()}" if request.param == "tcp" else f"ipc://{folder}/raw"


def program(place: str) -> socket.socket:
    """A program that connects."""
    scheme, _, where = place.partition("://")
    if scheme == "ipc":
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(DEADLINE)
        one.connect(where)
        return one
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


def read_all(one: socket.socket) -> bytes:
    return b"".join(iter(lambda: one.recv(65536), b""))


def until_end(sock: ms.Socket) -> Iterator[Message]:
    """Messages up to the one that says the end, which comes too."""
    while True:
        msg = sock.recv_msg(DEADLINE)
        yield msg
        if msg.content is None:
            return


def test_announcement_chunks_and_end(make_socket: Make, place: str) -> None:
    sock = make_socket()
    sock.listen(place, raw=True, raw_recv_buffer_size=1000)
    data = bytes(range(256)) * 50
    with program(place) as one:
        announced = sock.recv_msg(DEADLINE)
        assert (announced.content, announced.flags & RAW, announced.source) == (b"", RAW, (sock.pipes[0].id,))
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        *chunks, end = until_end(sock)
    assert b"".join(chunk.content for chunk in chunks) == data
    assert max(len(chunk.content) for chunk in chunks) <= 1000
    assert {chunk.source for chunk in [*chunks, end]} == {announced.source}
    wait_until(lambda: not sock.pipes, "the pipe is closed")


def test_replies(make_socket: Make, place: str) -> None:
    sock = make_socket()
    sock.listen(place, raw=True)
    with program(place) as one, program(place) as other:
        paths = {sock.recv_msg(DEADLINE).source for _ in range(2)}
        assert len(paths) == 2
        one.sendall(b"one")
        msg = sock.recv_msg(DEADLINE)
        assert msg.content == b"one"
        sock.send_to(msg.source, b"for one")
        sock.send_to(msg.source, bytes(1 << 20))
        sock.send_to(msg.source, None)  # and no more
        assert read_all(one) == b"for one" + bytes(1 << 20)
        (rest,) = paths - {msg.source}
        sock.send_to(rest, b"for the other")
        assert other.recv(100) == b"for the other"


def test_a_half_that_goes_on(make_socket: Make, place: str) -> None:
    """close_on_eof=False: who has said all it wants still hears us."""
    sock = make_socket()
    sock.listen(place, raw=True, close_on_eof=False)
    with program(place) as one:
        one.sendall(b"question")
        one.shutdown(socket.SHUT_WR)
        *_, end = until_end(sock)
        assert sock.pipes
        sock.send_to(end.source, b"answer")
        sock.send_to(end.source, None)
        assert read_all(one) == b"answer"
    sock.close_pipe(end.source[0])


def test_queued_replies_come_before_the_end(make_socket: Make, place: str) -> None:
    """With close_on_eof, what was sent before the end was noticed still goes."""
    sock = make_socket()
    sock.listen(place, raw=True)
    with program(place) as one:
        path = sock.recv_msg(DEADLINE).source
        for _ in range(5):
            sock.send_to(path, bytes(100_000), timeout=DEADLINE)
        one.shutdown(socket.SHUT_WR)
        assert len(read_all(one)) == 500_000


def test_dialing(make_socket: Make, place: str) -> None:
    scheme, _, where = place.partition("://")
    if scheme == "ipc":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(where)
        listening.listen()
    else:
        host, _, port = where.rpartition(":")
        listening = socket.create_server((host, int(port)))
    sock = make_socket()
    with listening:
        sock.dial(place, raw=True, reconnect=False)
        one, _ = listening.accept()
        with one:
            path = sock.recv_msg(DEADLINE).source
            sock.send_to(path, b"hello")
            assert one.recv(100) == b"hello"
            one.sendall(b"and back")
            assert sock.recv(DEADLINE) == b"and back"
        assert sock.recv_msg(DEADLINE).content is None
    Path(where).unlink(missing_ok=True)


def test_to_one_never_goes_to_a_raw_pipe(make_socket: Make, place: str) -> None:
    sock, peer = make_socket(), make_socket()
    sock.listen(place, raw=True)
    with program(place) as one:
        path = sock.recv_msg(DEADLINE).source
        sock.send(b"to a Socket")  # waits for one
        peer.dial(sock.listen(f"tcp://127.0.0.1:{free_port()}").address)
        assert peer.recv(DEADLINE) == b"to a Socket"
        sock.send_many([b"a", b"b"])
        assert peer.recv_many(1, DEADLINE)
        sock.send_to(path, b"x")
        assert one.recv(100) == b"x"


def test_backpressure(make_socket: Make, place: str) -> None:
    sock = make_socket(recv_queue_size=5)
    sock.listen(place, raw=True)
    with program(place) as one:
        one.settimeout(0.2)
        sent = 0

        def send(_: int) -> None:
            nonlocal sent
            sent += one.send(bytes(10_000))

        until_full(send)
        assert sock.stats()["depth"] <= 5
        one.close()
        assert sum(len(msg.content or b"") for msg in until_end(sock)) == sent


def test_an_http_client(make_socket: Make) -> None:
    sock = make_socket()
    port = int(sock.listen("tcp://127.0.0.1:0?raw=true&close_on_eof=false").address.rpartition(":")[2])
    client = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/x', timeout=20).read().decode())",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    request = b""
    while b"\r\n\r\n" not in request:
        msg = sock.recv_msg(DEADLINE)
        request += msg.content
    assert request.startswith(b"GET /x HTTP/1.1\r\n")
    sock.send_to(msg.source, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert client.communicate(timeout=DEADLINE)[0] == "hello\n"


def test_a_stale_path_is_replaced(make_socket: Make, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{folder}/raw")
    sock = make_socket()
    listener = sock.listen(f"ipc://{folder}/raw", raw=True)
    with program(listener.address) as one:
        one.sendall(b"x")
        assert [sock.recv(DEADLINE), sock.recv(DEADLINE)] == [b"", b"x"]
    listener.close()
    wait_until(lambda: not Path(f"{folder}/raw").exists(), "its file is removed")
