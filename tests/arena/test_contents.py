"""Large contents: of any size, in place on both sides, written once for all, and given back."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import numpy as np
import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, connected, wait_until
from multisocket import shm

Pair = tuple[ms.Socket, ms.Socket]
Make = Callable[..., ms.Socket]
MIB = 1 << 20
SIZES = [0, 1, 131_071, 131_072, 131_073, MIB, (5 << 20) + 7, 70 << 20]


def content_of(size: int) -> bytes:
    return os.urandom(min(size, 4099)) * (size // 4099 + 1) if size else b""


def is_unused(sock: ms.Socket) -> bool:
    return sock.stats()["arena_used"] == 0


@pytest.mark.parametrize("size", SIZES)
def test_sizes(pair: Pair, size: int) -> None:
    server, client = pair
    content = content_of(size)[:size]
    client.send(content)
    assert server.recv(DEADLINE) == content
    assert client.send_all(bytearray(content)) == 1
    with server.recv_msg(DEADLINE, copy=False) as msg:
        assert msg.content.readonly
        assert msg.content == content
        server.send_to(msg.source, msg.content)
    assert client.recv_many(5, DEADLINE) == [content]
    assert client.send_many([b"small", content], DEADLINE) == 2
    got: list[bytes] = []
    while len(got) < 2:
        got += server.recv_many(4, DEADLINE)
    assert got == [b"small", content]
    # Over a network it is given back a moment after it was written.
    wait_until(lambda: is_unused(client) and is_unused(server), "all is given back")


def test_of_several_gib(make_socket: Make, folder: object) -> None:
    """Without so much memory: nothing is written but the ends, and the pages between are zeros."""
    server, client = connected(make_socket, f"inproc://{folder}")
    stat = os.statvfs("/dev/shm")
    if stat.f_bavail * stat.f_frsize < 6 << 30:
        pytest.skip("/dev/shm has not 6 GiB free")
    size = 0xFFFFFFFF
    with client.loan(size) as loan:
        loan.buffer[0], loan.buffer[-1] = 1, 2
        loan.send()
    with server.recv_msg(DEADLINE, copy=False) as msg:
        assert (len(msg.content), msg.content[0], msg.content[-1]) == (size, 1, 2)
    with pytest.raises(ms.ContentTooLong):
        client.loan(size + 1)
    client._own_arena().trim()  # type: ignore[union-attr]
    assert client.stats()["arena_memory"] == 0


@pytest.mark.local
def test_a_view_lives_as_long_as_somebody_uses_it(pair: Pair) -> None:
    server, client = pair
    client.send(content_of(MIB))
    msg = server.recv_msg(DEADLINE, copy=False)
    expected = bytes(msg.content)
    array = np.frombuffer(msg.content, np.uint8)
    msg.release()
    msg.release()
    with pytest.raises(ValueError, match="released"):
        len(msg.content)
    for _ in range(5):  # the memory is not used again
        client.send(bytes(MIB))
        server.recv(DEADLINE)
    assert bytes(array) == expected
    assert not is_unused(client)
    del array
    assert is_unused(client)
    client.send(content_of(MIB))
    msg = server.recv_msg(DEADLINE, copy=False)
    del msg
    gc.collect()
    assert is_unused(client)


def test_a_view_outlives_both_sockets(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address)
    client.send(b"x" * MIB)
    msg = server.recv_msg(DEADLINE, copy=False)
    client.close()
    server.close()
    assert msg.content == b"x" * MIB
    msg.release()


def test_loans(pair: Pair) -> None:
    server, client = pair
    for size in (0, 10, MIB):
        with client.loan(size) as loan:
            loan.buffer[:] = b"a" * size
            loan.send()
            with pytest.raises(ms.BadMessage, match="sent or given back"):
                loan.send()
        assert server.recv(DEADLINE) == b"a" * size
        with client.loan(size) as loan:
            loan.buffer[:] = b"b" * size
            assert loan.send_all() == 1
        msg = server.recv_msg(DEADLINE)
        assert msg.content == b"b" * size
        with server.loan(size) as loan:
            loan.send_to(msg.source)
        assert len(client.recv(DEADLINE)) == size
        with client.loan(size):
            pass  # not sent: given back
    assert is_unused(client)
    with pytest.raises(ms.BadOption):
        client.loan(-1)


def test_a_loan_can_be_sent_again_after_an_error(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket(send_queue_size=1)
    client.send(b"the send queue is full")
    with client.loan(MIB) as loan:
        loan.buffer[:4] = b"here"
        with pytest.raises(ms.Timeout):
            loan.send(timeout=0)
        server.listen(address)
        client.dial(address)
        loan.send(DEADLINE)
    assert server.recv(DEADLINE) == b"the send queue is full"
    assert server.recv(DEADLINE)[:4] == b"here"
    assert is_unused(client)


def test_a_view_of_a_sent_loan_does_not_reach_other_messages(pair: Pair) -> None:
    server, client = pair
    with client.loan(MIB) as loan:
        mine = np.frombuffer(loan.buffer, np.uint8)
        mine[:] = 7
        loan.send()
    assert server.recv(DEADLINE) == b"\7" * MIB
    client.send(bytes(MIB))
    mine[:] = 9  # against the rules; it is nobody's memory but its own
    assert server.recv(DEADLINE) == bytes(MIB)
    del mine
    assert is_unused(client)


@pytest.mark.local
def test_to_all_is_written_once(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    clients = [make_socket() for _ in range(5)]
    for client in clients:
        client.dial(address)
    before = shm.copied_bytes()
    assert server.send_all(b"z" * (8 * MIB)) == 5
    assert shm.copied_bytes() - before == 8 * MIB
    assert server.stats()["arena_used"] == 8 * MIB
    for client in clients:
        with client.recv_msg(DEADLINE, copy=False) as msg:
            assert msg.content == b"z" * (8 * MIB)
    assert shm.copied_bytes() - before == 8 * MIB
    assert is_unused(server)


def test_forwarding_copies_nothing(make_socket: Make, folder: object, ipc: str) -> None:
    source, middle, target = make_socket(), make_socket(), make_socket()
    middle.listen(ipc)
    source.dial(ipc)
    target.listen(f"{ipc}2")
    source.send(b"f" * MIB)
    msg = middle.recv_msg(DEADLINE, copy=False)
    middle.close_pipe(msg.pipe_id)
    middle.dial(f"{ipc}2")
    before = shm.copied_bytes()
    middle.send_msg(msg)
    msg.release()
    assert not is_unused(source)
    with target.recv_msg(DEADLINE, copy=False) as got:
        assert got.content == b"f" * MIB
        assert got.hops == 2
    assert shm.copied_bytes() == before
    assert is_unused(source)
    with pytest.raises(ms.BadMessage, match="released"):
        middle.send_msg(msg)


def test_kept_until_somebody_connects(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket(recv_queue_bytes=4096)
    client.send(b"1" * 200_000)
    server.listen(address)
    client.dial(address)
    client.send(b"2" * 100_000)  # larger than the queue, too
    assert server.recv(DEADLINE) == b"1" * 200_000
    assert server.recv(DEADLINE) == b"2" * 100_000
    assert is_unused(client)


def test_kept_for_nobody(make_socket: Make) -> None:
    client = make_socket()
    client.send(bytes(MIB))
    client.close()


@pytest.mark.local
def test_unread_when_its_receiver_closes(make_socket: Make, address: str) -> None:
    """What was for one goes to another; what was for all is given back."""
    server, first = connected(make_socket, address)
    server.send(b"a" * MIB)
    server.send_all(b"b" * MIB)
    server.send_all(b"c" * 10)
    second = make_socket()
    second.dial(address)
    first.close()
    assert second.recv(DEADLINE) == b"a" * MIB
    wait_until(lambda: is_unused(server), "the rest is given back")
    with pytest.raises(ms.Timeout):
        second.recv(timeout=0)


def test_unread_when_both_close(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address)
    client.send_all(bytes(MIB))
    client.close()
    wait_until(lambda: not server.pipes, "it is gone")
    server.close()  # nobody will send that again: it is given back here, and with it the arena


def test_a_receiver_that_discards(make_socket: Make, address: str) -> None:
    server = make_socket(no_recv=True)
    client = make_socket()
    server.listen(address)
    client.dial(address)
    assert client.send_all(bytes(MIB)) == 1
    assert is_unused(client)


def test_ttl_is_used_up(pair: Pair) -> None:
    pair[1].send_msg(ms.Message(bytes(MIB), ttl=1))
    assert len(pair[0].recv_msg(DEADLINE).content) == MIB
    msg = ms.Message(bytes(MIB), ttl=2)
    pair[1].send_msg(msg)
    again = pair[0].recv_msg(DEADLINE)
    pair[0].send_msg(again)
    last = pair[1].recv_msg(DEADLINE)
    assert last.ttl == 0
    with pytest.raises(ms.MessageDropped):
        pair[1].send_msg(last)


@pytest.mark.local
def test_at_its_limit_send_waits(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address, arena_limit=3 * MIB)
    held = []
    for _ in range(3):
        client.send(bytes(MIB))
        held.append(server.recv_msg(DEADLINE, copy=False))
    with pytest.raises(ms.Timeout, match="arena_limit"):
        client.send(bytes(MIB), timeout=0.02)
    with pytest.raises(ms.Timeout):
        client.loan(MIB, timeout=0)
    client.send(b"small ones go on")
    assert server.recv(DEADLINE) == b"small ones go on"
    held.pop().release()
    client.send(bytes(MIB), timeout=DEADLINE)
    server.recv(DEADLINE)
    held.clear()
    client.send(bytes(20 * MIB))  # beyond the limit: let in when there is nothing else
    assert len(server.recv(DEADLINE)) == 20 * MIB


@pytest.mark.local
def test_a_waiting_send_goes_on(make_socket: Make, address: str, threads: Callable[..., object]) -> None:
    server, client = connected(make_socket, address, arena_limit=MIB)
    client.send(bytes(MIB))
    msg = server.recv_msg(DEADLINE, copy=False)
    threads(lambda: client.send(b"n" * MIB, timeout=DEADLINE))
    msg.release()
    assert server.recv(DEADLINE) == b"n" * MIB


@pytest.mark.local
def test_best_effort_drops_at_the_limit(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket(arena_limit=MIB, send_best_effort=True)
    server.listen(address)
    client.dial(address)
    client.send(bytes(MIB))
    msg = server.recv_msg(DEADLINE, copy=False)
    with pytest.raises(ms.MessageDropped):
        client.send(bytes(MIB))
    assert client.stats()["dropped"] == 1
    msg.release()


def test_without_an_arena(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address, arena_limit=0)
    client.send(b"m" * MIB)
    with client.loan(MIB) as loan:
        loan.send()
    assert server.recv(DEADLINE) == b"m" * MIB
    assert len(server.recv(DEADLINE)) == MIB
    assert client._own_arena() is None


@pytest.mark.local
def test_the_queue_holds_so_many_bytes_wherever_they_lie(make_socket: Make, address: str) -> None:
    server, client = make_socket(recv_queue_bytes=MIB), make_socket()
    server.listen(address)
    client.dial(address)
    for _ in range(3):
        client.send(bytes(300_000), timeout=0)
    with pytest.raises(ms.Timeout):
        client.send(bytes(300_000), timeout=0)


@pytest.mark.local
def test_memory_goes_back_after_a_burst(pair: Pair) -> None:
    server, client = pair
    client.send(bytes(40 * MIB))
    server.recv(DEADLINE)
    assert client.stats()["arena_memory"] >= 40 * MIB
    wait_until(lambda: client.stats()["arena_memory"] == 0, "the memory goes back to the system")
    client.send(b"again" * MIB)
    assert server.recv(DEADLINE) == b"again" * MIB


def _send_back(sock: ms.Socket) -> None:
    while True:
        try:
            with sock.recv_msg(copy=False) as msg:
                sock.send_to(msg.source, msg.content)
        except ms.Closed:
            return


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_that_share_both_ends(
    make_socket: Make, ipc: str, processes: Processes, threads: Callable[..., object], method: str
) -> None:
    server, client = connected(make_socket, ipc)
    workers = [processes.start(_send_back, server, method=method) for _ in range(3)]
    threads(lambda: [client.send(bytes([i]) * (MIB + i), DEADLINE) for i in range(60)])
    got = sorted((len(content), content[0]) for content in (client.recv(DEADLINE) for _ in range(60)))
    assert got == [(MIB + i, i) for i in range(60)]
    wait_until(lambda: is_unused(client) and is_unused(server), "all is given back")
    server.close()
    processes.join(*workers)
