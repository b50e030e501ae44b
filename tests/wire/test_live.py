"""The bytes of wire.json, both ways, on live connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE
from multisocket.message import CONTROL, Message

GOLDEN = json.loads((Path(__file__).parent / "wire.json").read_text())
SENT = [bytes.fromhex(one["hex"]) for one in GOLDEN["sent"]]
REPLIES = [(bytes.fromhex(one["in"]), bytes.fromhex(one["out"])) for one in GOLDEN["replies"]]

Make = Callable[..., ms.Socket]


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=DEADLINE)


def read(one: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = one.recv(size - len(data))
        assert more, "the connection was closed"
        data += more
    return data


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(DEADLINE)
        yield one


@pytest.mark.parametrize("case", range(len(SENT)))
def test_what_we_send(make_socket: Make, listening: socket.socket, case: int) -> None:
    sock = make_socket()
    sock.dial(f"tcp://127.0.0.1:{listening.getsockname()[1]}")
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(DEADLINE)
        sends: list[Callable[[], object]] = [
            lambda: sock.send(b"hello"),
            lambda: sock.send_all(b"all"),
            lambda: sock.send_msg(Message(b"ctl", ttl=7, flags=CONTROL)),
        ]
        sends[case]()
        assert read(connection, len(SENT[case])) == SENT[case]


@pytest.mark.parametrize("case", range(len(SENT)))
def test_what_we_understand(make_socket: Make, case: int) -> None:
    sock = make_socket()
    with connect(sock.listen("tcp://127.0.0.1:0").address) as peer:
        for byte in SENT[case]:  # one by one
            peer.send(bytes([byte]))
        msg = sock.recv_msg(DEADLINE)
    assert (msg.content, msg.send_type, msg.flags & ~3) == [(b"hello", 0, 0), (b"all", 1, 0), (b"ctl", 0, 32)][case]
    assert (msg.source, msg.ttl) == ((msg.pipe_id,), [15, 15, 6][case])


@pytest.mark.parametrize("case", range(2))
def test_replies(make_socket: Make, case: int) -> None:
    question, answer = REPLIES[case]
    sock = make_socket()
    with connect(sock.listen("tcp://127.0.0.1:0").address) as peer:
        peer.sendall(question)
        msg = sock.recv_msg(DEADLINE)
        assert msg.source[0] == 1, "the golden bytes are of a first pipe"
        sock.send_to(msg.source, b"re:" + msg.content)
        assert read(peer, len(answer)) == answer


def test_replies_through_a_switch(make_socket: Make) -> None:
    question, answer = REPLIES[2]
    front, back, replier = make_socket(), make_socket(), make_socket()
    address = front.listen("tcp://127.0.0.1:0").address
    with connect(address) as earlier, connect(address) as peer:
        earlier.sendall(question)
        assert front.recv_msg(DEADLINE).pipe_id == 1
        back.dial(replier.listen("tcp://127.0.0.1:0").address)
        peer.sendall(question)
        back.send_msg(front.recv_msg(DEADLINE))
        request = replier.recv_msg(DEADLINE)
        replier.send_to(request.source, b"re:" + request.content)
        front.send_msg(back.recv_msg(DEADLINE))
        assert read(peer, len(answer)) == answer
