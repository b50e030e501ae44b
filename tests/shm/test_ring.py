"""``multisocket.shm.Ring`` by itself."""

from __future__ import annotations

import os
import signal
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket import shm
from multisocket.shm import Ring


@pytest.fixture
def make_ring() -> Iterator[Callable[..., Ring]]:
    made: list[Ring] = []

    def make(**options: Any) -> Ring:
        made.append(Ring.create(f"/test-{uuid.uuid4().hex}", **options))
        return made[-1]

    yield make
    for ring in made:
        ring.unlink()


def test_records_come_out_as_they_went_in(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    for content in (b"", b"one", bytearray(b"two"), memoryview(b"three")):
        ring.push(content)
    assert len(ring) == ring.depth == 4
    assert [ring.pop() for _ in range(4)] == [b"", b"one", b"two", b"three"]
    assert ring.stats() == {"pushed": 4, "popped": 4, "blocked": 0, "depth": 0, "used": 0}


def test_capacity_is_rounded_up_to_a_power_of_two(make_ring: Callable[..., Ring]) -> None:
    assert make_ring(capacity=5000).capacity == 8192


def test_empty_and_full_time_out(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(limit=2)
    with pytest.raises(ms.Timeout, match="empty"):
        ring.pop(timeout=0)
    with pytest.raises(TimeoutError):
        ring.pop(timeout=0.01)
    ring.push(b"1")
    ring.push(b"2")
    with pytest.raises(ms.Timeout, match="full"):
        ring.push(b"3", timeout=0.01)
    assert ring.pop() == b"1"
    ring.push(b"3", timeout=0)


def test_full_by_bytes(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(capacity=4096)
    ring.push(bytes(2000))
    with pytest.raises(ms.Timeout):
        ring.push(bytes(3000), timeout=0)
    ring.push(bytes(1000), timeout=0)


def test_too_long_names_both_sizes(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(capacity=4096)
    ring.push(bytes(4096 - 16))
    ring.pop()
    with pytest.raises(ms.ContentTooLong, match=r"4081 bytes.* 4080"):
        ring.push(bytes(4096 - 15))


def test_batches(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    contents = [bytes([i % 256]) * (i * 37 % 500) for i in range(500)] + [bytes(100_000)]
    assert ring.push_many(contents) == 501
    got = ring.pop_many(100)
    assert len(got) == 100
    while len(got) < 501:
        got += ring.pop_many(1000)
    assert got == contents


def test_a_batch_that_does_not_fit_tells_how_much_did(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(limit=3)
    with pytest.raises(ms.Timeout) as raised:
        ring.push_many([b"x"] * 10, timeout=0.01)
    assert raised.value.sent == 3
    assert ring.depth == 3


@given(st.lists(st.one_of(st.binary(max_size=1500), st.integers(1, 6)), max_size=200))
@settings(max_examples=60, deadline=None)
def test_behaves_like_a_queue(steps: list[bytes | int]) -> None:
    """Bytes are pushed, numbers pop so many; the ring is small, so it wraps and rewinds all the time."""
    ring = Ring.create(f"/test-{uuid.uuid4().hex}", capacity=4096, limit=20)
    model: deque[bytes] = deque()
    try:
        for step in steps:
            if isinstance(step, bytes):
                fits = len(model) < 20 and sum(_size(one) for one in model) + _size(step) <= 4096
                if fits:
                    ring.push(step, timeout=0)
                    model.append(step)
                else:
                    with pytest.raises(ms.Timeout):
                        ring.push(step, timeout=0)
            elif model:
                got = ring.pop_many(step)
                assert got == [model.popleft() for _ in got]
            assert ring.depth == len(model)
            assert ring.used == sum(_size(one) for one in model)
    finally:
        ring.unlink()


def _size(content: bytes) -> int:
    return (16 + len(content) + 15) // 16 * 16


def test_close_wakes_who_waits(make_ring: Callable[..., Ring], threads: Callable[..., Any]) -> None:
    ring = make_ring(limit=1)
    full = make_ring(limit=1)
    full.push(b"x")
    ends: list[str] = []

    def expect_closed(call: Callable[..., Any], *args: Any) -> None:
        with pytest.raises(ms.Closed):
            call(*args)
        ends.append("closed")

    for _ in range(3):
        threads(expect_closed, ring.pop)
        threads(expect_closed, full.push, b"y")
    wait_until(lambda: full.stats()["blocked"] >= 3, "the pushes wait")
    ring.close()
    full.close()
    wait_until(lambda: len(ends) == 6, "all were woken")
    with pytest.raises(ms.Closed):
        full.pop()


def test_open_finds_only_rings(make_ring: Callable[..., Ring]) -> None:
    with pytest.raises(FileNotFoundError, match="there is no ring"):
        Ring.open("/test-no-such-ring")
    with ms.Socket() as sock, pytest.raises(ms.BadMessage, match="no ring"):
        Ring.open(sock._name)
    with pytest.raises(FileExistsError):
        Ring.create(make_ring().name)


@pytest.mark.parametrize("bad", [{"capacity": 0}, {"capacity": 1 << 40}, {"limit": 0}, {"limit": 1 << 40}])
def test_bad_options(bad: dict[str, int]) -> None:
    with pytest.raises(ms.BadOption):
        Ring.create("/test-never", **bad)


def _echo(there: str, back: str, n: int) -> None:
    source, target = Ring.open(there), Ring.open(back)
    for _ in range(n):
        target.push(source.pop(DEADLINE), DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_between_processes(make_ring: Callable[..., Ring], processes: Processes, method: str) -> None:
    there, back = make_ring(capacity=65536), make_ring(capacity=65536)
    child = processes.start(_echo, there.name, back.name, 2000, method=method)
    for i in range(2000):
        there.push(b"%d" % i * (i % 50), DEADLINE)
        if i >= 20:
            assert back.pop(DEADLINE) == b"%d" % (i - 20) * ((i - 20) % 50)
    processes.join(child)


def test_corrupt_memory_raises(make_ring: Callable[..., Ring]) -> None:
    """A record whose length is wrong: an error, and the ring goes on without what was in it."""
    ring = make_ring(capacity=4096)
    ring.push(b"first")
    with open(f"/dev/shm{ring.name}", "r+b") as memory:
        memory.seek(4096)
        memory.write(b"\xff\xff\xff\x7f")
    with pytest.raises(ms.BadMessage, match="contradicts"):
        ring.pop(timeout=0)
    ring.push(b"second")
    assert ring.pop(timeout=0) == b"second"


def test_ctrl_c_ends_a_wait(make_ring: Callable[..., Ring], threads: Callable[..., Any]) -> None:
    ring = make_ring()

    def interrupt() -> None:
        wait_until(lambda: _sleeps(main), "the pop sleeps")
        os.kill(os.getpid(), signal.SIGINT)

    main = os.getpid()
    threads(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ring.pop(timeout=DEADLINE)


def _sleeps(tid: int) -> bool:
    with open(f"/proc/self/task/{tid}/wchan") as wchan:
        return "futex" in wchan.read()


def test_spin_is_tunable() -> None:
    before = shm.get_spin()
    try:
        shm.set_spin(0)
        assert shm.get_spin() == 0
        with pytest.raises(ms.BadOption):
            shm.set_spin(2)
    finally:
        shm.set_spin(before)


@pytest.mark.parametrize("kind", [shm.Ring, shm.Segment, shm.Arena])
def test_they_are_not_made_directly(kind: type) -> None:
    with pytest.raises(TypeError, match="found with"):
        kind()
