"""One Socket, many processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, connected, wait_until
from multisocket.protocol import Pull, Push
from multisocket.shm import Ring

Make = Callable[..., ms.Socket]
methods = pytest.mark.parametrize("method", START_METHODS)


def _answer(sock: ms.Socket, n: int) -> None:
    for _ in range(n):
        msg = sock.recv_msg(DEADLINE)
        sock.send_to(msg.source, b"%d:" % os.getpid() + msg.content)


@methods
def test_children_receive_and_answer(make_socket: Make, address: str, processes: Processes, method: str) -> None:
    server, client = connected(make_socket, address)
    children = [processes.start(_answer, server, 20, method=method) for _ in range(2)]
    client.send_many([b"%d" % i for i in range(40)])
    answers = [client.recv(DEADLINE).split(b":") for _ in range(40)]
    assert sorted(int(answer[1]) for answer in answers) == list(range(40))
    assert {int(answer[0]) for answer in answers} == {child.pid for child in children}
    processes.join(*children)


def _send_later(sock: ms.Socket, gate: str, n: int) -> None:
    Ring.open(gate).pop(DEADLINE)
    for i in range(n):
        sock.send(b"%d" % i, timeout=DEADLINE)
    sock.send_all(b"end", timeout=DEADLINE)


@methods
def test_pipes_that_connect_later_are_usable(make_socket: Make, ipc: str, processes: Processes, method: str) -> None:
    """The child starts when there is no pipe; it sends when there is one."""
    gate = Ring.create(f"/test-gate-{os.getpid()}-{method}")
    shared, peer = make_socket(), make_socket()
    child = processes.start(_send_later, shared, gate.name, 100, method=method)
    peer.listen(ipc)
    shared.dial(ipc)
    gate.push(b"go")
    assert [peer.recv(DEADLINE) for _ in range(101)] == [b"%d" % i for i in range(100)] + [b"end"]
    processes.join(child)
    gate.unlink()


def _send_now(sock: ms.Socket, n: int) -> None:
    for i in range(n):
        sock.send(b"%d" % i, timeout=DEADLINE)


@methods
def test_a_child_waits_for_the_first_peer(make_socket: Make, ipc: str, processes: Processes, method: str) -> None:
    shared, peer = make_socket(send_queue_size=5), make_socket()
    child = processes.start(_send_now, shared, 50, method=method)
    wait_until(lambda: shared.stats()["pending"] == 5, "the child's messages are kept")
    peer.listen(ipc)
    shared.dial(ipc)
    assert [peer.recv(DEADLINE) for _ in range(50)] == [b"%d" % i for i in range(50)]
    processes.join(child)


def _only_the_owner(sock: ms.Socket, address: str) -> None:
    for use in (sock.listen, sock.dial, sock.stop_dial, sock.connect):
        with pytest.raises(ms.NotSupported, match="process that made the Socket"):
            use(address)
    with pytest.raises(ms.NotSupported):
        _ = sock.pipes
    sock.close()
    with pytest.raises(ms.Closed):
        sock.recv()


@methods
def test_children_cannot_connect_and_close_only_for_themselves(
    make_socket: Make, address: str, processes: Processes, method: str
) -> None:
    server, client = connected(make_socket, address)
    processes.join(processes.start(_only_the_owner, server, address, method=method))
    client.send(b"still here")
    assert server.recv(DEADLINE) == b"still here"


def _expect_closed(sock: ms.Socket, ready: str) -> None:
    ring = Ring.open(ready)
    ring.push(b"ready")
    with pytest.raises(ms.Closed, match="closed by the process that made it"):
        sock.recv(DEADLINE)


@methods
def test_closing_by_the_owner_ends_it_for_children(make_socket: Make, processes: Processes, method: str) -> None:
    ready = Ring.create(f"/test-ready-{os.getpid()}-{method}")
    sock = make_socket()
    children = [processes.start(_expect_closed, sock, ready.name, method=method) for _ in range(2)]
    for _ in children:
        ready.pop(DEADLINE)
    sock.close()
    processes.join(*children)
    ready.unlink()


def _own(ipc: str, done: str) -> None:
    """A Socket that a forked child makes is its own."""
    with ms.Socket() as sock:
        sock.dial(ipc)
        sock.send(b"of the child")
        Ring.open(done).pop(DEADLINE)


@methods
def test_a_child_makes_its_own_sockets(make_socket: Make, ipc: str, processes: Processes, method: str) -> None:
    done = Ring.create(f"/test-done-{os.getpid()}-{method}")
    server = make_socket()
    server.listen(ipc)
    child = processes.start(_own, ipc, done.name, method=method)
    assert server.recv(DEADLINE) == b"of the child"
    assert server.pipes[0].peer_pid == child.pid
    done.push(b"")
    processes.join(child)
    wait_until(lambda: not server.pipes, "its pipe is gone")
    done.unlink()


def test_inproc_names_are_not_inherited(make_socket: Make, processes: Processes) -> None:
    make_socket().listen("inproc://of-the-parent")
    processes.join(processes.start(_dials_in_vain))


def _dials_in_vain() -> None:
    with ms.Socket() as sock, pytest.raises(ms.ConnectionRefused):
        sock.dial("inproc://of-the-parent")


def test_a_peer_sees_the_owners_end_although_a_child_lives_on(
    make_socket: Make, ipc: str, processes: Processes
) -> None:
    """A forked child must not hold its parent's connections open."""
    server = make_socket()
    server.listen(ipc)
    gate, seen = (Ring.create(f"/test-{what}-{os.getpid()}") for what in ("gate", "seen"))
    parent = processes.start(_fork_and_die, ipc, gate.name, seen.name)
    server.recv(DEADLINE)
    wait_until(lambda: server.pipes == [], "the pipe is gone with the parent")
    gate.push(b"the child may go")
    assert seen.pop(DEADLINE) == b"the child was there all the time"
    processes.join(parent)
    gate.unlink()
    seen.unlink()


def _fork_and_die(ipc: str, gate: str, seen: str) -> None:
    sock = ms.Socket()
    sock.dial(ipc)
    if os.fork() == 0:
        Ring.open(gate).pop(DEADLINE)
        Ring.open(seen).push(b"the child was there all the time")
        os._exit(0)
    sock.send(b"hello")
    os._exit(0)


def test_a_handle_of_a_closed_socket_is_closed(make_socket: Make) -> None:
    sock = make_socket()
    data = pickle.dumps(sock)
    copy = pickle.loads(data)
    sock.send(b"kept")
    assert copy.stats()["pending"] == 1
    copy.close()
    assert not sock.closed
    sock.close()
    assert pickle.loads(data).closed


def _produce(address: str, producer: int, n: int) -> None:
    with Push() as push:
        push.dial(address)
        for i in range(n):
            push.send(struct.pack("<II", producer, i), timeout=DEADLINE)


def _consume(pull: Pull, path: str) -> None:
    """Writes what it gets, in its order; an empty message is the end."""
    with open(path, "wb", buffering=1 << 20) as out:
        for content in pull:
            if not content:
                return
            out.write(content)


MESSAGES = int(os.environ.get("MULTISOCKET_TEST_MESSAGES", "1000000"))


@methods
@pytest.mark.timeout(300)
def test_exactly_once(ipc: str, folder: Path, processes: Processes, method: str) -> None:
    """A million messages of 4 producers through one Socket that 4 processes share: none lost, none twice; each
    producer's in order, as each consumer sees them."""
    each = MESSAGES // 4
    with Pull() as pull, Push() as end:
        pull.listen(ipc)
        files = [folder / f"got{i}" for i in range(4)]
        consumers = [processes.start(_consume, pull, str(file), method=method) for file in files]
        producers = [processes.start(_produce, ipc, i, each, method=method) for i in range(4)]
        for producer in producers:
            producer.join(240)
        processes.join(*producers)
        end.dial(ipc)
        end.send_many([b""] * 4)
        processes.join(*consumers)
    seen = bytearray(4 * each)
    for file in files:
        last = [-1] * 4
        for producer, i in struct.iter_unpack("<II", file.read_bytes()):
            assert i > last[producer], "out of order, or twice"
            last[producer] = i
            seen[producer * each + i] += 1
    assert seen.count(1) == len(seen), "lost or twice"
    assert multiprocessing.active_children() == []
