"""Bus."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until
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
