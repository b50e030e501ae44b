"""Many Sockets, many pipes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until

Make = Callable[..., ms.Socket]


def test_an_idle_socket_takes_little(make_socket: Make) -> None:
    """Its queues are not in memory until they are used, and a little use takes little."""
    sock, peer = make_socket(), make_socket()
    file = f"/dev/shm{sock._name}"
    assert os.stat(file).st_blocks * 512 <= 8192
    sock.listen(f"inproc://idle-{os.getpid()}")
    peer.dial(f"inproc://idle-{os.getpid()}")
    for _ in range(5000):
        peer.send(bytes(200))
        sock.recv()
    assert os.stat(file).st_blocks * 512 <= 200_000


def test_memory_and_descriptors_stay_flat(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)

    def visit() -> None:
        with ms.Socket() as client:
            client.dial(address)
            client.send(b"x")
            server.recv(DEADLINE)

    for _ in range(20):
        visit()
    wait_until(lambda: not server.pipes, "all are gone")
    before = _descriptors(), _mappings()
    for _ in range(200):
        visit()
    wait_until(lambda: not server.pipes, "all are gone")
    server.send_all(b"")  # brings the list of peers up to date
    wait_until(lambda: _descriptors() <= before[0] + 2, "descriptors are closed")
    assert _mappings() <= before[1] + 10


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _mappings() -> int:
    return sum("/dev/shm/ms-" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("peers", [3, 200])
def test_room_in_any_of_many_full_peers(make_socket: Make, threads: Callable[..., object], peers: int) -> None:
    """More peers than one system call can wait for."""
    name = f"inproc://full-{os.getpid()}"
    server = make_socket()
    server.listen(name)
    clients = [make_socket(recv_queue_size=1, recv_queue_bytes=4096) for _ in range(peers)]
    for client in clients:
        client.dial(name)
    for _ in clients:
        server.send(b"fills one", timeout=0)
    assert all(client.stats()["depth"] == 1 for client in clients)
    with pytest.raises(ms.Timeout):
        server.send(b"no room", timeout=0)
    for client in (clients[0], clients[-1]):
        threads(server.send, b"next", DEADLINE)
        wait_until(lambda: clients[0].stats()["blocked"], "it waits")
        assert client.recv(DEADLINE) == b"fills one"
        assert client.recv(DEADLINE) == b"next"
        server.send(b"fills one", timeout=0)


def test_a_thousand_clients_of_one_server(make_socket: Make) -> None:
    name = f"inproc://thousand-{os.getpid()}"
    server = make_socket()
    server.listen(name)
    clients = [make_socket(recv_queue_bytes=4096) for _ in range(1000)]
    for client in clients:
        client.dial(name)
    for _ in range(3):
        for i, client in enumerate(clients):
            client.send(b"%d" % i)
        for _ in clients:
            msg = server.recv_msg(0)
            server.send_to(msg.source, msg.content, timeout=0)
        assert [client.recv(0) for client in clients] == [b"%d" % i for i in range(1000)]
        assert server.send_all(b"news") == 1000
        assert all(client.recv(0) == b"news" for client in clients)
