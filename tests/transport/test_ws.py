"""WebSocket: what other programs see of it."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import multisocket as ms
from conftest import DEADLINE, wait_until
from multisocket.message import CONTROL, Message, encode
from multisocket.transport import network

GOLDEN = json.loads((Path(__file__).parents[1] / "wire" / "wire.json").read_text())
SENT = [bytes.fromhex(one["hex"]) for one in GOLDEN["sent"]]
REPLIES = [(bytes.fromhex(one["in"]), bytes.fromhex(one["out"])) for one in GOLDEN["replies"]]

Make = Callable[..., ms.Socket]


def open_at(address: str, **options: Any) -> ClientConnection:
    return connect(address, open_timeout=DEADLINE, close_timeout=1, compression=None, **options)


@pytest.mark.parametrize("subprotocol", [None, "multisocket.binary", "multisocket.text"])
def test_golden_bytes(make_socket: Make, subprotocol: Any) -> None:
    """Frames in the kind that was asked for."""
    sock = make_socket()
    address = sock.listen("ws://127.0.0.1:0").address
    with open_at(address, subprotocols=[subprotocol] if subprotocol else None) as peer:
        assert peer.subprotocol == subprotocol
        wait_until(lambda: sock.pipes, "it is connected")
        sock.send(b"hello")
        sock.send_all(b"all")
        sock.send_msg(Message(b"ctl", ttl=7, flags=CONTROL))
        got = [peer.recv(DEADLINE) for _ in SENT]
        assert all(isinstance(one, str) == (subprotocol == "multisocket.text") for one in got)
        assert [one.encode() if isinstance(one, str) else one for one in got] == SENT
        for question, answer in REPLIES[:2]:
            peer.send(question)
            msg = sock.recv_msg(DEADLINE)
            sock.send_to(msg.source, b"re:" + msg.content)
            reply = peer.recv(DEADLINE, decode=False)
            assert reply == answer


def test_frames_in_parts_pings_and_good_bye(make_socket: Make) -> None:
    sock = make_socket()
    with open_at(sock.listen("ws://127.0.0.1:0").address) as peer:
        wire = encode(Message(b"in three parts"))
        peer.send([wire[:3], wire[3:9], wire[9:]])
        assert sock.recv(DEADLINE) == b"in three parts"
        assert peer.ping().wait(DEADLINE)
        peer.send(encode(Message(b"text frame")).decode())
        assert sock.recv(DEADLINE) == b"text frame"
    wait_until(lambda: not sock.pipes, "the pipe is closed")


def test_we_say_good_bye(make_socket: Make) -> None:
    sock = make_socket()
    with open_at(sock.listen("ws://127.0.0.1:0").address) as peer:
        wait_until(lambda: sock.pipes, "it is connected")
        sock.close_pipe(sock.pipes[0].id)
        with pytest.raises(ConnectionClosed) as closed:
            peer.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_paths(make_socket: Make) -> None:
    sock, client = make_socket(), make_socket()
    address = sock.listen("ws://127.0.0.1:0/right").address
    assert address.endswith("/right")
    for wrong in (address + "/not", address.replace("/right", "/")):
        with pytest.raises(InvalidStatus, match="404"), open_at(wrong):
            pass
        with pytest.raises(ms.ConnectionRefused, match="404"):
            client.dial(wrong)
    client.dial(address)
    client.dial(address.replace("/right", ""), path="right")
    with open_at(address + "?token=1"):
        wait_until(lambda: len(sock.pipes) == 3, "all are connected")


def test_origins(make_socket: Make) -> None:
    """Pages of other sites may not connect, unless somebody says so."""
    sock = make_socket()
    address = sock.listen("ws://127.0.0.1:0").address
    ours = address.replace("ws://", "http://").rstrip("/")
    with open_at(address, origin=ours):
        pass
    with pytest.raises(InvalidStatus, match="403"), open_at(address, origin="http://evil.example"):
        pass
    chosen = sock.listen("ws://127.0.0.1:0", origin_checker=lambda origin: origin.endswith(".good.example")).address
    with open_at(chosen, origin="https://a.good.example"):
        pass
    with pytest.raises(InvalidStatus, match="403"), open_at(chosen, origin=ours):
        pass
    with open_at(sock.listen("ws://127.0.0.1:0?check_origin=false").address, origin="http://evil.example"):
        pass


def test_unknown_subprotocols(make_socket: Make) -> None:
    sock = make_socket()
    with (
        pytest.raises(InvalidStatus, match="400"),
        open_at(
            sock.listen("ws://127.0.0.1:0").address,
            subprotocols=["other"],  # type: ignore[list-item]
        ),
    ):
        pass


@pytest.mark.parametrize("attack", ["garbage", "no handshake", "silence", "long frame", "long content", "bad frame"])
def test_broken_peers(
    make_socket: Make, attack: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, good = make_socket(), make_socket()
    address = sock.listen("ws://127.0.0.1:0", max_recv_content_length=1000).address
    good.dial(address)
    wait_until(lambda: sock.pipes, "it is connected")
    monkeypatch.setattr(network, "HANDSHAKE_TIMEOUT", 0.3)
    port = int(address.rpartition(":")[2].partition("/")[0])
    with caplog.at_level(logging.INFO, "multisocket"), socket.create_connection(("127.0.0.1", port)) as one:
        said = {
            "garbage": b"\x00\x01\x02\r\n\r\n",
            "no handshake": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "silence": b"GET",
        }
        if attack in said:
            one.sendall(said[attack])
        else:
            with open_at(address) as peer:
                if attack == "long frame":
                    peer.send(bytes(4000))
                elif attack == "long content":
                    peer.send(encode(Message(bytes(1001))))
                else:
                    peer.socket.sendall(b"\xff\xff\xff\xff")
                with pytest.raises(ConnectionClosed):
                    peer.recv(DEADLINE)
        wait_until(lambda: "came to nothing" in caplog.text or "is closed: " in caplog.text, "the reason is logged")
    wait_until(lambda: len(sock.pipes) == 1, "only the good one is left")
    good.send(b"fine")
    assert sock.recv(DEADLINE) == b"fine"


def test_a_listener_that_is_none(make_socket: Make) -> None:
    """A dialer meets a Socket that speaks plain tcp."""
    plain, client = make_socket(), make_socket()
    address = plain.listen("tcp://127.0.0.1:0", max_recv_content_length=1000).address
    with pytest.raises(ms.ConnectionRefused, match="hung up"):
        client.dial(address.replace("tcp", "ws"))
