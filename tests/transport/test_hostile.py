"""Broken and hostile peers: their pipe closes with a logged reason, and nobody else notices."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until
from multisocket.message import Message, encode

Make = Callable[..., ms.Socket]

MOST = 1 << 20


class Victim:
    """A Socket with a good peer, which goes on working."""

    def __init__(self, make_socket: Make) -> None:
        self.sock = make_socket()
        self.address = self.sock.listen("tcp://127.0.0.1:0", max_recv_content_length=MOST).address
        self.good = make_socket()
        self.good.dial(self.address)
        self.check()

    def check(self) -> None:
        for content in (b"are you well?", bytes(300_000)):
            self.good.send(content, timeout=DEADLINE)
            # What others have sent may come first.
            msg = next(msg for msg in iter(lambda: self.sock.recv_msg(DEADLINE), None) if msg.content == content)
            self.sock.send_to(msg.source, b"yes")
            assert self.good.recv(DEADLINE) == b"yes"

    def attack(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), timeout=DEADLINE)

    def only_good_is_left(self) -> bool:
        return len(self.sock.pipes) == 1


@pytest.fixture
def victim(make_socket: Make, caplog: pytest.LogCaptureFixture) -> Iterator[Victim]:
    with caplog.at_level(logging.INFO, "multisocket"):
        one = Victim(make_socket)
        yield one
        one.check()


def is_closed_by_peer(one: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while one.recv(65536):
            pass
    return True


def header(length: int, hops: int = 0, distance: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BBBBI", flags, 16, hops, distance, length)


def test_too_long(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    with victim.attack() as one:
        one.sendall(header(MOST + 1))
        assert is_closed_by_peer(one)
    wait_until(victim.only_good_is_left, "the pipe is closed")
    wait_until(lambda: "max_recv_content_length" in caplog.text, "the reason is logged")


def test_just_not_too_long(victim: Victim) -> None:
    with victim.attack() as one:
        one.sendall(header(MOST) + bytes(MOST))
        assert len(victim.sock.recv(DEADLINE)) == MOST


def test_an_http_request(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    with victim.attack() as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_closed_by_peer(one)
    wait_until(lambda: "no messages" in caplog.text, "the reason is logged")


def test_the_end_in_the_middle(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    for part in (
        b"\0",
        header(100)[:7],
        header(100),
        header(100) + b"x",
        header(0, hops=3),
        header(200_000) + bytes(150_000),
    ):
        caplog.clear()
        with victim.attack() as one:
            one.sendall(part)
        wait_until(lambda: "in the middle of a message" in caplog.text, "the reason is logged")
    wait_until(victim.only_good_is_left, "the pipes are closed")


def test_a_reset(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    whole = encode(Message(b"x" * 1000, source=[1, 2, 3]))
    for size in (0, 5, 8, 15, 500, len(whole)):
        caplog.clear()
        with victim.attack() as one:
            wait_until(lambda: len(victim.sock.pipes) == 2, "it is connected")
            one.sendall(whole[:size])
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(victim.only_good_is_left, "the pipe is closed")
        assert "is closed: " in caplog.text


def test_silence_costs_nothing(victim: Victim) -> None:
    """Lengths without contents: no memory is taken for what only may come."""
    with contextlib.ExitStack() as attackers:
        for i in range(200):
            one = attackers.enter_context(victim.attack())
            one.sendall(header(MOST, hops=255 if i % 2 else 0)[: 8 if i % 3 else 5])
        wait_until(lambda: len(victim.sock.pipes) == 201, "all are connected")
        victim.check()
        assert victim.sock.stats()["arena_used"] == 0
    wait_until(victim.only_good_is_left, "the pipes are closed")


def test_a_word_is_believed_for_a_while_only(make_socket: Make) -> None:
    """Memory for a content grows with what has come of it."""
    sock = make_socket()
    address = sock.listen("tcp://127.0.0.1:0").address
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as one:
        sent = 100_000
        one.sendall(header(200 << 20) + bytes(sent))
        used = wait_until(lambda: sock.stats()["arena_used"], "it takes memory")
        assert used <= 16 * sent


@pytest.mark.parametrize("seed", range(5))
def test_garbage(victim: Victim, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(20):
        with victim.attack() as one, contextlib.suppress(OSError):
            for _ in range(chance.randrange(1, 20)):
                # Small lengths, so that some of it looks like messages.
                one.sendall(chance.randbytes(chance.randrange(12)) + bytes(chance.randrange(30)))
                if chance.random() < 0.3:
                    one.sendall(encode(Message(chance.randbytes(50), source=[1], ttl=chance.randrange(256))))
    wait_until(victim.only_good_is_left, "the pipes are closed")


def test_a_flood_of_connections(make_socket: Make, caplog: pytest.LogCaptureFixture) -> None:
    sock, good = make_socket(pipe_limit=5), make_socket()
    address = sock.listen("tcp://127.0.0.1:0").address
    good.dial(address)
    wait_until(lambda: sock.pipes, "it is connected")
    before = len(os.listdir("/proc/self/fd"))
    with caplog.at_level(logging.INFO, "multisocket"), contextlib.ExitStack() as attackers:
        for _ in range(500):
            attackers.enter_context(socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))))
        wait_until(lambda: caplog.text.count("pipe_limit") >= 496, "the others are refused")
        assert len(sock.pipes) == 5
        good.send(b"still here")
        assert sock.recv(DEADLINE) == b"still here"
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 5, "descriptors are given back")


def test_out_of_descriptors(make_socket: Make) -> None:
    """Connections wait until there are some again; those there are go on."""
    sock, good = make_socket(), make_socket()
    address = sock.listen("tcp://127.0.0.1:0").address
    good.dial(address)
    good.send(b"x")
    sock.recv(DEADLINE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as opened:
        late = opened.enter_context(socket.socket())
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    opened.enter_context(Path("/dev/null").open())
            late.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            good.send(b"goes on")
            assert sock.recv(DEADLINE) == b"goes on"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        late.sendall(encode(Message(b"late")))
        assert sock.recv(DEADLINE) == b"late"


def test_who_never_reads_what_it_asked_for(victim: Victim, threads: Callable[..., threading.Thread]) -> None:
    """Its outbox fills up; whoever sends to it waits, and nobody else."""
    with victim.attack() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(encode(Message(b"question")))
        path = victim.sock.recv_msg(DEADLINE).source

        def answer() -> None:
            with contextlib.suppress(ms.BrokenPath):
                while True:
                    victim.sock.send_to(path, bytes(100_000), timeout=DEADLINE)

        blocked = threads(answer)
        for _ in range(20):
            victim.check()
        assert blocked.is_alive()
    wait_until(victim.only_good_is_left, "the pipe is closed")
