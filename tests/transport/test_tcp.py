"""tcp: addresses, backpressure, the end of connections, and processes that share a Socket."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, free_port, until_full, wait_until

Make = Callable[..., ms.Socket]
Start = Callable[..., threading.Thread]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def plain(address: str) -> socket.socket:
    """A program that knows nothing of us."""
    return socket.create_connection(("127.0.0.1", port_of(address)), timeout=DEADLINE)


# --- addresses ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "*"])
def test_hosts(make_socket: Make, host: str) -> None:
    if host == "[::1]" and not _has_ipv6():
        pytest.skip("this system has no IPv6")
    server, client = make_socket(), make_socket()
    listener = server.listen(f"tcp://{host}:0")
    assert port_of(listener.address) > 0
    client.dial(listener.address.replace("*", "127.0.0.1"))
    client.send(b"question")
    server.send_to(server.recv_msg(DEADLINE).source, b"answer")
    assert client.recv(DEADLINE) == b"answer"


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize("bad", ["tcp://host", "tcp://:1", "tcp://h:x", "tcp://h:70000", "tcp://::1:5", "tcp://h:-1"])
def test_bad_addresses(make_socket: Make, bad: str) -> None:
    with pytest.raises(ms.BadAddress, match="port"):
        make_socket().listen(bad)


def test_nobody_there(make_socket: Make) -> None:
    sock = make_socket()
    with pytest.raises(ms.ConnectionRefused, match="nobody listens"):
        sock.dial(f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(ms.BadAddress, match="no address was found"):
        sock.dial("tcp://no.such.host.invalid:1")
    with pytest.raises(ms.BadAddress, match="port 0"):
        sock.dial("tcp://127.0.0.1:0")


def test_in_use_and_free_again(make_socket: Make) -> None:
    first, second = make_socket(), make_socket()
    listener = first.listen("tcp://127.0.0.1:0")
    with pytest.raises(ms.AddressInUse):
        second.listen(listener.address)
    listener.close()
    second.listen(listener.address)


def test_options(make_socket: Make) -> None:
    server, client = make_socket(), make_socket()
    listener = server.listen("tcp://127.0.0.1:0?no_delay=false&read_buffer=65536", keep_alive_period=7)
    client.dial(listener.address, write_buffer=65536, keep_alive=False)
    client.send(bytes(1 << 20), timeout=DEADLINE)
    assert len(server.recv(DEADLINE)) == 1 << 20
    with pytest.raises(ms.BadOption):
        client.dial(listener.address, no_delay="yes")


def test_pipes_tell_who_is_there(make_socket: Make) -> None:
    server, client = make_socket(), make_socket()
    listener = server.listen("tcp://127.0.0.1:0")
    client.dial(listener.address)
    (mine,) = client.pipes
    (its,) = wait_until(lambda: server.pipes, "the server has its pipe")
    assert (mine.address, mine.dialed, its.dialed) == (listener.address, True, False)
    assert mine.peer_address == f"127.0.0.1:{port_of(listener.address)}"
    assert its.peer_address.startswith("127.0.0.1:")


def test_a_message_says_that_it_came_over_a_network(make_socket: Make, folder: Any) -> None:
    """Also after it was passed on within this machine."""
    far, middle, near = make_socket(), make_socket(), make_socket()
    near.listen(f"ipc://{folder}/s")
    middle.dial(f"ipc://{folder}/s")
    far.listen("tcp://127.0.0.1:0")
    for content in (b"small", bytes(1 << 20)):
        with make_socket() as sender:
            sender.dial(far._connector._listeners[0].address)  # type: ignore[union-attr]
            sender.send(content)
            received = far.recv_msg(DEADLINE)
        assert received.is_remote
        middle.send_msg(received)
        passed_on = near.recv_msg(DEADLINE)
        assert passed_on.is_remote
        assert passed_on.content == content
    middle.send(b"local")
    assert not near.recv_msg(DEADLINE).is_remote


def test_objects(make_socket: Make) -> None:
    """What comes from a network is never unpickled."""
    server, client = make_socket(), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    client.send_obj({"a": [1, 2.5, None]})
    assert server.recv_obj(DEADLINE) == {"a": [1, 2.5, None]}
    client.send_obj({"a": 1}, serializer="pickle")
    with pytest.raises(ms.BadMessage, match="came over a network"):
        server.recv_obj(DEADLINE)


# --- much, and large ---


@pytest.mark.parametrize("size", [0, 1, 64, 4096, 70_000, 131_072, 300_000, 5 << 20, 40 << 20])
def test_sizes_both_ways(make_socket: Make, size: int) -> None:
    server, client = make_socket(), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    content = random.Random(size).randbytes(size)
    for _ in range(3):
        client.send(content, timeout=DEADLINE)
        msg = server.recv_msg(DEADLINE)
        assert msg.content == content
        server.send_to(msg.source, msg.content, timeout=DEADLINE)
        assert client.recv(DEADLINE) == content


def test_a_receiver_that_pauses_in_a_large_content(make_socket: Make) -> None:
    """The sender does not stay with it; what it leaves behind is written by others."""
    client = make_socket()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client.dial(f"tcp://127.0.0.1:{listening.getsockname()[1]}")
        connection, _ = listening.accept()
    with connection:
        connection.settimeout(DEADLINE)
        content = random.Random(1).randbytes(60 << 20)
        client.send(content, timeout=0)
        client.send(b"behind it")
        got = bytearray()
        while len(got) < 8 + len(content) + 8 + 9:
            got += connection.recv(1 << 20)
    assert got[8:-17] == content
    assert got[-9:] == b"behind it"


def test_a_small_inbox_takes_contents_of_any_size(make_socket: Make) -> None:
    server, client = make_socket(recv_queue_bytes=4096), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    sizes = [10, 5000, 100_000, 3 << 20, 0, 4000]
    for size in sizes:
        client.send(bytes(size), timeout=DEADLINE)
    assert [len(server.recv(DEADLINE)) for _ in sizes] == sizes


def test_without_an_arena(make_socket: Make) -> None:
    server = make_socket(arena_limit=0, recv_queue_bytes=1 << 20)
    client = make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    client.send(bytes(500_000))
    client.send(b"after")
    assert len(server.recv(DEADLINE)) == 500_000
    assert server.recv(DEADLINE) == b"after"


def test_order_and_number(make_socket: Make, threads: Start) -> None:
    """Small and large ones mixed, from two threads: each thread's come in its order."""
    server, client = make_socket(recv_queue_bytes=1 << 16), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    count = 4000

    def send(sender: int) -> None:
        chance = random.Random(sender)
        for i in range(count):
            size = chance.choice([0, 10, 100, 5000, 40_000]) if i % 50 else 200_000
            client.send(b"%d %d " % (sender, i) + bytes(size), timeout=DEADLINE)

    for sender in range(2):
        threads(send, sender)
    seen = [0, 0]
    for _ in range(2 * count):
        sender, i = (int(part) for part in server.recv(DEADLINE).split(b" ", 2)[:2])
        assert seen[sender] == i
        seen[sender] += 1


def test_many(make_socket: Make, threads: Start) -> None:
    server, client = make_socket(), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    contents = [b"%d" % i for i in range(50_000)]
    threads(lambda: client.send_many(contents, timeout=DEADLINE))
    got: list[bytes] = []
    while len(got) < len(contents):
        got += server.recv_many(1000, timeout=DEADLINE)
    assert got == contents


def test_to_one_is_shared_out(make_socket: Make) -> None:
    client = make_socket()
    servers = [make_socket() for _ in range(3)]
    for server in servers:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
    for i in range(300):
        client.send(b"%d" % i)
    assert all(server.recv(DEADLINE) for server in servers)


def test_to_all(make_socket: Make) -> None:
    server = make_socket()
    listener = server.listen("tcp://127.0.0.1:0")
    clients = [make_socket() for _ in range(5)]
    for client in clients:
        client.dial(listener.address)
    wait_until(lambda: len(server.pipes) == 5, "all are connected")
    for content in (b"small", bytes(2 << 20)):
        assert server.send_all(content, timeout=DEADLINE) == 5
        assert all(client.recv(DEADLINE) == content for client in clients)


# --- backpressure ---


@pytest.mark.parametrize("size", [100, 50_000, 1 << 20])
def test_a_slow_receiver_stops_the_sender(make_socket: Make, size: int) -> None:
    server = make_socket(recv_queue_bytes=1 << 16, recv_queue_size=10)
    client = make_socket()
    client.dial(
        server.listen("tcp://127.0.0.1:0", read_buffer=65536).address, write_buffer=65536, send_queue_bytes=65536
    )
    sent = until_full(lambda i: client.send(b"%d " % i + bytes(size), timeout=0.2))
    assert server.stats()["depth"] <= 10
    assert [int(server.recv(DEADLINE).split(b" ")[0]) for _ in range(sent)] == list(range(sent))
    client.send(b"goes on", timeout=DEADLINE)
    assert server.recv(DEADLINE) == b"goes on"


def test_close_sends_what_is_left(make_socket: Make, threads: Start) -> None:
    server = make_socket(recv_queue_size=10)
    listener = server.listen("tcp://127.0.0.1:0")
    client = ms.Socket(send_stop_timeout=DEADLINE)
    client.dial(listener.address)
    contents = [b"%d " % i + bytes(1000) for i in range(5000)]
    threads(lambda: (client.send_many(contents, timeout=DEADLINE), client.close()))
    assert [server.recv(DEADLINE) for _ in contents] == contents
    wait_until(lambda: client.closed, "it is closed")


def test_close_pipe_sends_what_is_left(make_socket: Make) -> None:
    server, client = make_socket(recv_queue_size=10), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address, reconnect=False)
    for i in range(2000):
        client.send(b"%d " % i + bytes(300), timeout=DEADLINE)
    client.close_pipe(client.pipes[0].id)
    assert [int(server.recv(DEADLINE).split()[0]) for _ in range(2000)] == list(range(2000))
    wait_until(lambda: not server.pipes, "the server has heard of the end")


def test_a_peer_that_never_reads(make_socket: Make) -> None:
    """Others do not notice; closing takes no longer than it may."""
    client = make_socket(send_stop_timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client.dial(f"tcp://127.0.0.1:{mute.getsockname()[1]}", reconnect=False, write_buffer=4096)
        until_full(lambda _: client.send_all(bytes(100_000), timeout=0.1))
        other = make_socket()
        client.dial(other.listen("tcp://127.0.0.1:0").address)
        client.send(b"to the other", timeout=DEADLINE)
        assert other.recv(DEADLINE) == b"to the other"
        client.close()


# --- the end ---


def test_reconnecting(make_socket: Make) -> None:
    client, server = make_socket(), make_socket()
    address = server.listen("tcp://127.0.0.1:0").address
    client.dial(address, min_reconnect_time=0.01, max_reconnect_time=0.05)
    for i in range(3):
        server.close()
        wait_until(lambda: not client.pipes, "the client has heard of the end")
        server = make_socket()
        server.listen(address)
        client.send(b"%d" % i)  # kept until it is connected again
        assert server.recv(DEADLINE) == b"%d" % i


def test_what_a_broken_connection_had_not_taken_goes_to_another(make_socket: Make) -> None:
    """Each at most once; what is lost was taken by the system, or by the peer."""
    client = make_socket(send_queue_size=100_000)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client.dial(f"tcp://127.0.0.1:{mute.getsockname()[1]}", reconnect=False, write_buffer=4096)
        connection, _ = mute.accept()
        sent = until_full(lambda i: client.send(b"%d " % i + bytes(10_000), timeout=0.1))
        other = make_socket(recv_queue_size=100_000, recv_queue_bytes=1 << 30)
        listener = other.listen("tcp://127.0.0.1:0")
        client.dial(listener.address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # a reset
    numbers: list[int] = []
    while sent - 1 not in numbers:
        numbers.append(int(other.recv(DEADLINE).split(b" ")[0]))
    assert len(numbers) >= 50  # the outbox holds a MiB
    assert sorted(set(numbers)) == sorted(numbers)


def test_an_end_is_noticed_by_who_sends_while_nothing_is_received(make_socket: Make) -> None:
    """What is left to be read stands before the word of the end."""
    server, client = make_socket(), make_socket(recv_queue_size=1)
    client.dial(server.listen("tcp://127.0.0.1:0").address, reconnect=False)
    wait_until(lambda: server.pipes, "it is connected")
    for _ in range(20):
        server.send(bytes(100_000), DEADLINE)
    server.close()

    def is_noticed() -> bool:
        with contextlib.suppress(ms.Timeout):
            client.send(b"is somebody there?", 0)
        return not client.pipes

    wait_until(is_noticed, "the pipe ends")


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_the_socket(make_socket: Make, processes: Processes, method: str) -> None:
    """Workers take requests that came by tcp, and send the replies through the pipe that only their parent has."""
    server, client = make_socket(), make_socket()
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    wait_until(lambda: server.pipes, "the server has its pipe")
    workers = [processes.start(_reply, server, method=method) for _ in range(2)]
    assert [client.recv(DEADLINE) for _ in workers] == [b"ready", b"ready"]
    count = 1000
    for i in range(count):
        client.send(b"%d" % i + bytes(200_000 if i % 100 == 0 else 10), timeout=DEADLINE)
    replies = [client.recv(DEADLINE) for _ in range(count)]
    assert sorted(int(reply.split()[0]) for reply in replies) == list(range(count))
    assert sum(len(reply) > 100_000 for reply in replies) == count // 100
    for _ in workers:
        client.send(b"end")
    processes.join(*workers)


def _reply(sock: ms.Socket) -> None:
    sock.send_all(b"ready")
    for msg in sock:
        if msg.content == b"end":
            return
        number = msg.content.rstrip(b"\0")
        sock.send_to(msg.source, b"%s %d " % (number, os.getpid()) + bytes(len(msg.content)), timeout=DEADLINE)


def test_the_owner_is_killed(make_socket: Make, processes: Processes) -> None:
    """The peer hears of it, although children of the owner live on."""
    client = make_socket()
    code = """
import multisocket as ms, os, sys, time
sock = ms.Socket()
listener = sock.listen("tcp://127.0.0.1:0")
print(listener.address, flush=True)
sock.recv()
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""
    process = processes.run(code)
    assert process.stdout is not None
    client.dial(process.stdout.readline().strip(), reconnect=False)
    client.send(b"x")
    child = int(process.stdout.readline())
    try:
        process.kill()
        wait_until(lambda: not client.pipes, "the client has heard of the end")
    finally:
        os.kill(child, signal.SIGKILL)
    ms.clean()


def test_a_listener_of_a_child_of_fork_is_its_parents(make_socket: Make, processes: Processes) -> None:
    server, client = make_socket(), make_socket()
    listener = server.listen("tcp://127.0.0.1:0")
    processes.join(processes.start(listener.close))
    client.dial(listener.address)
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"


def test_who_receives_nothing_is_no_burden(make_socket: Make) -> None:
    """no_recv: what comes is thrown away, whatever its size."""
    server, client = make_socket(), make_socket(no_recv=True)
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    client.send(b"x")
    path = server.recv_msg(DEADLINE).source
    for size in (0, 100, 200_000, 30 << 20):
        server.send_to(path, bytes(size), timeout=DEADLINE)
    client.send(b"still here")
    assert server.recv(DEADLINE) == b"still here"
