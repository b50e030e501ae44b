"""Many Sockets, many pipes."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, wait_until

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


def test_two_thousand_connections(make_socket: Make, processes: Processes) -> None:
    """Over tcp, of another process; each costs one descriptor."""
    count = 2000
    _let_have_descriptors(count + 1000)
    server = make_socket()
    address = server.listen("tcp://127.0.0.1:0").address
    before = _descriptors()
    client = processes.run(_MANY, str(count), address.rpartition(":")[2])
    wait_until(lambda: len(server.pipes) == count, "all are connected")
    assert _descriptors() - before <= count + 20
    for _ in range(3 * count):
        msg = server.recv_msg(DEADLINE)
        server.send_to(msg.source, msg.content)
    assert server.send_all(b"news") == count
    assert client.wait(DEADLINE) == 0, client.stderr
    wait_until(lambda: not server.pipes, "all are gone")
    wait_until(lambda: _descriptors() <= before + 20, "descriptors are given back")


def _let_have_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this system lets a process have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


_MANY = """
import resource, socket, sys
from multisocket.message import Message, encode

count, port = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(count)]

def read(one, size):
    data = b""
    while len(data) < size:
        more = one.recv(size - len(data))
        assert more
        data += more
    return data

for turn in range(3):
    for i, one in enumerate(connections):
        one.sendall(encode(Message(b"%06d" % i)))
    for i, one in enumerate(connections):
        assert read(one, 18).endswith(b"%06d" % i)
for one in connections:
    assert read(one, 12).endswith(b"news")
"""


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
