"""A connection that is cut at random bytes."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable

import multisocket as ms
from conftest import DEADLINE, free_port, wait_until

Make = Callable[..., ms.Socket]

MESSAGES = 100_000
CUTS = 100
# Of the system, on either side of the proxy: what is in them when the connection is cut is lost.
BUFFER = 16384


class Proxy:
    """Passes bytes on between those who connect and a target; cuts each connection after a random number of them."""

    def __init__(self, target: int, cuts: int, most: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listening.settimeout(0.1)
        self._target = target
        self._chance = random.Random(1)
        self._most = most
        self.left = cuts
        self.stopping = False
        self.port = self._listening.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self._listening:
            while not self.stopping:
                with contextlib.suppress(TimeoutError, OSError):
                    one, _ = self._listening.accept()
                    with one, socket.create_connection(("127.0.0.1", self._target)) as other:
                        self._carry(one, other)

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        budget = self._chance.randrange(self._most) if self.left else None
        selector = selectors.DefaultSelector()
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while not self.stopping:
            for key, _ in selector.select(0.1):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                data = source.recv(1 << 16 if budget is None else max(1, min(1 << 16, budget)))
                if not data:
                    return
                key.data.sendall(data)
                if budget is None:
                    continue
                budget -= len(data)
                if budget <= 0:
                    self._cut(one, other)
                    return

    def _cut(self, *ends: socket.socket) -> None:
        self.left -= 1
        for end in ends:
            if self._chance.random() < 0.5:  # a reset, or an orderly end in the middle
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_each_message_comes_at_most_once(make_socket: Make, threads: Callable[..., threading.Thread]) -> None:
    server = make_socket(recv_queue_size=1000)
    port = free_port()
    server.listen(f"tcp://127.0.0.1:{port}")
    client = make_socket()
    proxy = Proxy(port, CUTS, 120_000)
    got: list[int] = []

    def receive() -> None:
        while True:
            content = server.recv(DEADLINE)
            if content == b"end":
                return
            number, _, filling = content.partition(b" ")
            assert filling == b"." * (int(number) % 200)
            got.append(int(number))

    receiver = threads(receive)
    try:
        client.dial(
            f"tcp://127.0.0.1:{proxy.port}", min_reconnect_time=0.001, max_reconnect_time=0.01, write_buffer=BUFFER
        )
        for i in range(MESSAGES):
            client.send(b"%d " % i + b"." * (i % 200), timeout=DEADLINE)
        wait_until(lambda: proxy.left == 0, "all cuts are done")
        # One that is sent while the last cut is being noticed may be lost.
        wait_until(lambda: client.send(b"end", timeout=DEADLINE) or not receiver.is_alive(), "all came")
    finally:
        proxy.stopping = True
        proxy.thread.join(DEADLINE)
    numbers = [number for number in got if number < MESSAGES]
    assert len(numbers) == len(set(numbers)), "some came twice"
    lost = MESSAGES - len(numbers)
    print(f"{lost} of {MESSAGES} messages were in flight when the connection was cut, {CUTS} times")
    # The system doubles the buffers that it is asked for; the proxy has one more between them.
    assert lost * 100 <= CUTS * 8 * BUFFER
