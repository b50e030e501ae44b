"""Objects with buffers: written once, read where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multisocket as ms
from conftest import DEADLINE, Processes, connected, wait_until
from multisocket import serializer, shm
from multisocket.shm import Ring

Pair = tuple[ms.Socket, ms.Socket]


@pytest.mark.local
def test_pickle(pair: Pair) -> None:
    server, client = pair
    for n in (3, 1_000_000):
        obj = {"a": np.arange(n), "b": [np.ones((n, 2), np.float32)], "c": {1, 2}}
        client.send_obj(obj, serializer="pickle")
        got = server.recv_obj(DEADLINE)
        assert got["c"] == {1, 2}
        np.testing.assert_array_equal(got["a"], obj["a"])
        np.testing.assert_array_equal(got["b"][0], obj["b"][0])
        assert got["a"].ctypes.data % (64 if n > 3 else 8) == 0
        assert not got["a"].flags.writeable
        del got
    assert client.stats()["arena_used"] == 0


def _receive_array(ipc: str, results: str) -> None:
    ring = Ring.open(results)
    with ms.Socket() as sock:
        sock.dial(ipc)
        array = sock.recv_obj(DEADLINE)
        lies_in = next(
            line for line in Path("/proc/self/maps").read_text().splitlines() if _spans(line, array.ctypes.data)
        )
        ring.push(f"{array.nbytes} {shm.copied_bytes()} {array.sum()} {lies_in.split()[-1]}".encode())
        del array


def _spans(line: str, address: int) -> bool:
    begin, _, end = line.split()[0].partition("-")
    return int(begin, 16) <= address < int(end, 16)


def test_an_array_is_copied_once_on_the_whole_way(make_socket: object, ipc: str, processes: Processes) -> None:
    """100 MB: the sender copies them once, the receiver not at all: its array lies in the sender's arena."""
    results = Ring.create(f"/test-once-{Path(ipc).parent.name}")
    with ms.Socket() as sock:
        sock.listen(ipc)
        receiver = processes.start(_receive_array, ipc, results.name, method="spawn")
        wait_until(lambda: sock.pipes, "connected")
        array = np.arange(12_500_000)
        before = shm.copied_bytes()
        sock.send_obj(array, serializer="pickle")
        copied = shm.copied_bytes() - before
        nbytes, copied_there, total, lies_in = results.pop(DEADLINE).decode().split()
        assert array.nbytes <= copied < array.nbytes + 1000
        assert (int(nbytes), int(copied_there), int(total)) == (array.nbytes, 0, array.sum())
        assert lies_in.startswith("/dev/shm/ms-")
        assert lies_in.endswith("a")
        processes.join(receiver)
    results.unlink()


class _Text:
    def dump(self, obj: object) -> list[memoryview]:
        return [memoryview(str(obj).encode()), memoryview(b"!")]

    def load(self, parts: list[memoryview]) -> str:
        return b"".join(parts).decode()


@pytest.mark.local
def test_ones_own_serializer(pair: Pair) -> None:
    serializer.register("text", _Text())
    pair[1].send_obj(12345, serializer="text")
    assert pair[0].recv_obj(DEADLINE) == "12345!"
    with pytest.raises(ms.BadOption, match=r"no serializer 'unknown'.* msgpack, pickle, text"):
        pair[1].send_obj(1, serializer="unknown")
    for name in ("", "msgpack", "é", "x" * 256):
        with pytest.raises(ms.BadOption):
            serializer.register(name, _Text())


@given(st.binary(max_size=200))
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ms.BadMessage):
        serializer.load(b"\xc1" + garbage)


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_parts_come_back(parts: list[bytes]) -> None:
    views = [memoryview(part) for part in parts]
    target = bytearray(serializer.content_size(views, "x"))
    serializer.write(views, "x", memoryview(target))
    name, back = serializer._read(memoryview(target))
    assert (name, [bytes(part) for part in back]) == ("x", parts)


def test_a_peer_that_claims_too_much(make_socket: object, address: str) -> None:
    server, client = connected(make_socket, address)  # type: ignore[arg-type]
    for body in (b"\x06pickle\xff\xff\xff\xff", b"\x06pickle\0\0\0\1" + b"\xff" * 8, b"\xff"):
        client.send(b"\xc1" + body)
        with pytest.raises(ms.BadMessage, match="cannot be read as an object"):
            server.recv_obj(DEADLINE)
