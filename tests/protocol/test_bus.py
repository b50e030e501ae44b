"""Bus."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, until_full, wait_until
from multisocket.protocol import Bus


def star(hub: Bus, address: str, *others: Bus) -> None:
    hub.listen(address)
    for bus in others:
        bus.dial(address)
    wait_until(lambda: len(hub.socket.pipes) == len(others), "all are connected")


def has_nothing(bus: Bus) -> bool:
    try:
        bus.recv(0)
    except ms.Timeout:
        return True
    return False


def test_all_direct_peers_hear_it_and_nobody_else(address: str) -> None:
    with Bus() as hub, Bus() as one, Bus() as other:
        star(hub, address, one, other)
        assert hub.send(b"to both") == 2
        assert [one.recv(DEADLINE), other.recv(DEADLINE)] == [b"to both"] * 2
        assert one.send(b"to the hub") == 1
        assert hub.recv(DEADLINE) == b"to the hub"
        assert all(map(has_nothing, (hub, one, other)))  # no echo, and nothing goes on by itself


def test_a_mesh(folder: Path) -> None:
    buses = [Bus() for _ in range(4)]
    for i, bus in enumerate(buses):
        bus.listen(f"ipc://{folder}/{i}")
        for j in range(i):
            bus.dial(f"ipc://{folder}/{j}")
    for bus in buses:
        wait_until(lambda bus=bus: len(bus.socket.pipes) == 3, "all are connected")
    for i, bus in enumerate(buses):
        assert bus.send(b"%d" % i) == 3
    for i, bus in enumerate(buses):
        assert sorted(bus.recv(DEADLINE) for _ in range(3)) == [b"%d" % j for j in range(4) if j != i]
        bus.close()


def test_forward_goes_to_all_but_where_it_came_from(address: str) -> None:
    with Bus() as hub, Bus() as one, Bus() as two, Bus() as three:
        star(hub, address, one, two, three)
        one.send(b"x")
        assert hub.forward(hub.recv_msg(DEADLINE)) == 2
        assert [two.recv(DEADLINE), three.recv(DEADLINE)] == [b"x"] * 2
        assert has_nothing(one)
        # Whoever hears it can answer the one who said it.
        three.send(b"y")
        msg = hub.recv_msg(DEADLINE)
        hub.socket.send_to(msg.source, b"z")
        assert three.recv(DEADLINE) == b"z"


def test_nobody_is_there(address: str) -> None:
    with Bus() as bus:
        assert bus.send(b"is not kept", 0) == 0
        bus.listen(address)
        with Bus() as late:
            late.dial(address)
            wait_until(lambda: bus.socket.pipes, "it came")
            assert bus.send(b"now", DEADLINE) == 1
            assert late.recv(DEADLINE) == b"now"
        wait_until(lambda: not bus.socket.pipes, "it went")
        assert bus.send(b"", 0) == 0


def test_forward_does_not_go_to_another_peer_of_the_same_kind_twice(address: str) -> None:
    """Neither short nor large contents, forwarded any number of times."""
    with Bus() as hub, Bus() as one, Bus() as two:
        star(hub, address, one, two)
        for content in (b"", b"short", b"x" * (1 << 20)):
            one.send(content)
            msg = hub.recv_msg(DEADLINE)
            assert [hub.forward(msg, DEADLINE) for _ in range(3)] == [1, 1, 1]
            assert [two.recv(DEADLINE) for _ in range(3)] == [content] * 3
            assert has_nothing(one)


def test_what_came_from_one_that_is_gone_goes_to_all(address: str) -> None:
    with Bus() as hub, Bus() as two:
        with Bus() as one:
            star(hub, address, one, two)
            one.send(b"last words")
            msg = hub.recv_msg(DEADLINE)
        wait_until(lambda: len(hub.socket.pipes) == 1, "it is gone")
        with Bus() as three:
            three.dial(address)
            wait_until(lambda: len(hub.socket.pipes) == 2, "another one came")
            assert hub.forward(msg, DEADLINE) == 2
            assert [two.recv(DEADLINE), three.recv(DEADLINE)] == [b"last words"] * 2


def test_the_ttl_counts_the_nodes(address: str) -> None:
    with Bus() as hub, Bus(send_ttl=1) as near, Bus(send_ttl=2) as far:
        star(hub, address, near, far)
        near.send(b"x")
        with pytest.raises(ms.MessageDropped, match="ttl"):
            hub.forward(hub.recv_msg(DEADLINE))
        assert has_nothing(far)
        far.send(b"y")
        assert hub.forward(hub.recv_msg(DEADLINE)) == 1
        msg = near.recv_msg(DEADLINE)
        assert msg.content == b"y"
        with pytest.raises(ms.MessageDropped, match="ttl"):
            near.forward(msg)


def _forward(bus: Bus, n: int) -> None:
    for _ in range(n):
        bus.forward(bus.recv_msg(DEADLINE), DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_forward_through_one_bus(ipc: str, processes: Processes, method: str) -> None:
    with Bus() as hub, Bus() as one, Bus() as two:
        star(hub, ipc, one, two)
        workers = [processes.start(_forward, hub, 100, method=method) for _ in range(2)]
        for i in range(100):
            one.send(b"one %d" % i, DEADLINE)
            two.send(b"two %d" % i, DEADLINE)
        assert sorted(one.recv(DEADLINE) for _ in range(100)) == sorted(b"two %d" % i for i in range(100))
        assert sorted(two.recv(DEADLINE) for _ in range(100)) == sorted(b"one %d" % i for i in range(100))
        processes.join(*workers)
        assert has_nothing(one)
        assert has_nothing(two)


def _join(address: str, ready: Any) -> None:
    with Bus() as bus:
        bus.dial(address)
        ready.set()
        for _ in bus:
            pass


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_peer_that_is_stopped_makes_it_wait_and_killed_not_any_more(
    folder: Path, processes: Processes, threads: Callable[..., threading.Thread], scheme: str
) -> None:
    with Bus() as hub, Bus() as quick:
        address = hub.listen(f"ipc://{folder}/s" if scheme == "ipc" else "tcp://127.0.0.1:0").address
        quick.dial(address)
        ready = multiprocessing.get_context("fork").Event()
        process = processes.start(_join, address, ready)
        assert ready.wait(DEADLINE)
        wait_until(lambda: len(hub.socket.pipes) == 2, "both are there")
        os.kill(process.pid, signal.SIGSTOP)
        assert until_full(lambda _: hub.send(b"x" * 60_000, 0.1) and quick.recv(DEADLINE)) > 0
        assert quick.recv(DEADLINE) == b"x" * 60_000  # it goes to those who have room all the same
        sent: list[int] = []
        thread = threads(lambda: sent.append(hub.send(b"last", DEADLINE)))
        assert quick.recv(DEADLINE) == b"last"
        process.kill()
        thread.join(DEADLINE)
        assert len(sent) == 1
        wait_until(lambda: len(hub.socket.pipes) == 1, "it is gone")
        assert hub.send(b"y", DEADLINE) == 1


@pytest.mark.local
def test_how_many_got_it_in_time(address: str) -> None:
    with Bus() as hub, Bus(recv_queue_size=1) as slow, Bus() as quick:
        star(hub, address, slow, quick)
        assert hub.send(b"1") == 2
        with pytest.raises(ms.Timeout) as caught:
            hub.send(b"2", 0.01)
        assert caught.value.sent == 1
        assert quick.recv_many(2, DEADLINE) == [b"1", b"2"]
        assert slow.recv(DEADLINE) == b"1"
        assert hub.send(b"3", DEADLINE) == 2
        assert [slow.recv(DEADLINE), quick.recv(DEADLINE)] == [b"3", b"3"]


@pytest.mark.local
def test_forwarding_by_best_effort_leaves_out_who_is_slow(address: str) -> None:
    with Bus(send_best_effort=True) as hub, Bus() as one, Bus(recv_queue_size=1) as slow, Bus() as quick:
        star(hub, address, one, slow, quick)
        for i in range(3):
            one.send(b"%d" % i)
            assert hub.forward(hub.recv_msg(DEADLINE)) == (1 if i else 2)
        assert quick.recv_many(3, DEADLINE) == [b"0", b"1", b"2"]
        assert slow.recv(DEADLINE) == b"0"
        assert has_nothing(slow)


def test_all_talk_at_once(folder: Path, threads: Callable[..., threading.Thread]) -> None:
    with contextlib.ExitStack() as stack:
        buses = [stack.enter_context(Bus()) for _ in range(4)]
        for i, bus in enumerate(buses):
            bus.listen(f"ipc://{folder}/{i}")
            for j in range(i):
                bus.dial(f"ipc://{folder}/{j}")
        for bus in buses:
            wait_until(lambda bus=bus: len(bus.socket.pipes) == 3, "all are connected")
        for i, bus in enumerate(buses):
            threads(lambda i=i, bus=bus: [bus.send(b"%d %d" % (i, n), DEADLINE) for n in range(500)])
        for i, bus in enumerate(buses):
            heard: dict[int, list[int]] = {j: [] for j in range(4) if j != i}
            for _ in range(1500):
                who, number = map(int, bus.recv(DEADLINE).split())
                heard[who].append(number)
            assert heard == {j: list(range(500)) for j in heard}
            assert has_nothing(bus)


def test_forwarding_in_a_ring_ends(folder: Path) -> None:
    with Bus(send_ttl=5) as one, Bus() as two, Bus() as three:
        for i, (bus, peer) in enumerate(((one, two), (two, three), (three, one))):
            bus.listen(f"ipc://{folder}/{i}")
            peer.dial(f"ipc://{folder}/{i}")
        for bus in (one, two, three):
            wait_until(lambda bus=bus: len(bus.socket.pipes) == 2, "the ring is closed")
        # It goes round both ways, and each copy ends when its ttl is used up.
        one.send(b"round")
        sent, ended = 2, 0
        for bus in itertools.cycle((one, two, three)):
            while bus.socket.stats()["depth"]:
                try:
                    sent += bus.forward(bus.recv_msg(DEADLINE))
                except ms.MessageDropped:
                    ended += 1
            if ended == 2:
                break
        assert sent == 2 * 5


def test_best_effort_leaves_out_who_is_slow(address: str) -> None:
    with Bus(send_best_effort=True) as hub, Bus(recv_queue_size=1) as slow, Bus() as quick:
        star(hub, f"inproc://{address}", slow, quick)
        assert hub.send(b"1") == 2
        assert hub.send(b"2") == 1
        assert quick.recv_many(2, DEADLINE) == [b"1", b"2"]
        assert slow.recv(DEADLINE) == b"1"
        assert has_nothing(slow)


def test_objects_and_iterating(address: str) -> None:
    with Bus() as hub, Bus() as one:
        star(hub, address, one)
        hub.send_obj({"a": 1})
        assert one.recv_obj(DEADLINE) == {"a": 1}
        hub.send(b"x")
        for content in one:
            assert content == b"x"
            break
        with pytest.raises(ms.Timeout):
            hub.recv(0.01)
