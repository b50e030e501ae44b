"""Threads of one process on one Socket."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

import multisocket as ms
from conftest import DEADLINE, connected, wait_until

Make = Callable[..., ms.Socket]
Start = Callable[..., threading.Thread]


def test_eight_threads_send_and_receive(make_socket: Make, address: str, threads: Start) -> None:
    server, client = connected(make_socket, address)
    answers: list[bytes] = []

    def answer() -> None:
        for _ in range(2000):
            msg = server.recv_msg(DEADLINE)
            server.send_to(msg.source, msg.content)

    def ask(number: int) -> None:
        for i in range(2000):
            client.send(b"%d-%d" % (number, i))
            answers.append(client.recv(DEADLINE))

    for number in range(4):
        threads(answer)
        threads(ask, number)
    wait_until(lambda: len(answers) == 8000, "all answers")
    assert len(set(answers)) == 8000


def test_threads_with_long_contents(make_socket: Make, address: str, threads: Start) -> None:
    server, client = connected(make_socket, address, recv_queue_bytes=1 << 20)
    got: list[bytes] = []

    def receive() -> None:
        for _ in range(50):
            got.append(server.recv(DEADLINE))

    def send(number: int) -> None:
        for i in range(50):
            client.send(bytes([number]) * (100_000 + i), timeout=DEADLINE)

    for number in range(4):
        threads(receive)
        threads(send, number)
    wait_until(lambda: len(got) == 200, "all came")
    assert all(content.count(content[0]) == len(content) for content in got)
    assert sorted(map(len, got)) == sorted(list(range(100_000, 100_050)) * 4)


@pytest.mark.local
def test_close_wakes_blocked_threads(make_socket: Make, address: str, threads: Start) -> None:
    server, client = connected(make_socket, address, recv_queue_size=1)
    client.send(b"fills it")
    ended: list[str] = []

    def expect_closed(call: Callable[..., object], *args: object) -> None:
        with pytest.raises(ms.Closed):
            call(*args)
        ended.append("closed")

    for _ in range(4):
        threads(expect_closed, client.recv)
        threads(expect_closed, client.send, b"no room")
    wait_until(lambda: server.stats()["blocked"] >= 4, "the sends wait")
    client.close()
    wait_until(lambda: len(ended) == 8, "all were woken")


@pytest.mark.local
def test_pipes_come_and_go_while_threads_send(make_socket: Make, address: str, threads: Start) -> None:
    """To-one messages of pipes that are closed meanwhile go to others: none is lost, none comes twice."""
    server = make_socket(send_queue_size=100_000)
    server.listen(address)
    got: list[bytes] = []
    stop = threading.Event()

    def send(number: int) -> None:
        for i in range(3000):
            server.send(b"%d-%d" % (number, i), timeout=DEADLINE)

    def receive_for_a_while() -> None:
        while not stop.is_set():
            with ms.Socket() as client:
                client.dial(address)
                for _ in range(37):
                    try:
                        got.append(client.recv(timeout=0.05))
                    except ms.Timeout:
                        break

    for number in range(2):
        threads(receive_for_a_while)
        threads(send, number)
    try:
        wait_until(lambda: len(got) >= 6000, "all came")
    finally:
        stop.set()
    assert len(got) == len(set(got)) == 6000


@pytest.mark.parametrize("blocked", ["recv", "send", "recv_many"])
@pytest.mark.local
def test_ctrl_c_in_a_blocking_call(make_socket: Make, address: str, threads: Start, blocked: str) -> None:
    server, client = connected(make_socket, address, recv_queue_size=1)
    client.send(b"fills it")
    main = threading.get_native_id()

    def interrupt() -> None:
        wait_until(lambda: _sleeps(main), "the call sleeps")
        os.kill(os.getpid(), signal.SIGINT)

    threads(interrupt)
    calls: dict[str, Callable[[], object]] = {
        "recv": lambda: client.recv(DEADLINE),
        "recv_many": lambda: client.recv_many(5, DEADLINE),
        "send": lambda: client.send(b"no room", DEADLINE),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[blocked]()
    assert server.recv() == b"fills it"
    client.send(b"usable")
    assert server.recv(DEADLINE) == b"usable"


def _sleeps(tid: int) -> bool:
    with open(f"/proc/self/task/{tid}/wchan") as wchan:
        return "futex" in wchan.read()


def test_two_threads_close_one_socket(make_socket: Make, address: str, threads: Start) -> None:
    """Both return when it is closed, and peers hear of it once."""
    for _ in range(10):
        server = ms.Socket(send_stop_timeout=0.0)
        server.listen(address)
        clients = [make_socket() for _ in range(4)]
        for client in clients:
            client.dial(address, reconnect=False)
        start = threading.Barrier(3)
        errors: list[Exception] = []

        def close(
            server: ms.Socket = server, start: threading.Barrier = start, errors: list[Exception] = errors
        ) -> None:
            start.wait()
            try:
                server.close()
            except Exception as error:
                errors.append(error)

        closers = [threads(close) for _ in range(2)]
        start.wait()
        for closer in closers:
            closer.join(DEADLINE)
        assert not errors
        assert server.closed
        wait_until(lambda clients=clients: not any(client.pipes for client in clients), "the clients have heard of it")
