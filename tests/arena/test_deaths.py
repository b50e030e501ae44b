"""Who dies with blocks in hand, and a /dev/shm that is too small."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, in_small_memory, wait_until

MIB = 1 << 20


def _receive(ipc: str, seed: int) -> None:
    """Some are held for a while, some copied, some passed back."""
    dice = random.Random(seed)
    held: list[ms.Message] = []
    with ms.Socket() as sock:
        sock.dial(ipc)
        while True:
            msg = sock.recv_msg(copy=dice.random() < 0.5)
            if dice.random() < 0.2:
                with contextlib.suppress(ms.Timeout):
                    sock.send_msg(msg, timeout=0)
            held.append(msg)
            if len(held) > 3:
                held.pop(dice.randrange(4)).release()


@pytest.mark.timeout(280)
def test_random_kills_of_receivers(ipc: str, processes: Processes) -> None:
    """10,000 large messages of random sizes: the arena ends as empty as it began."""
    dice = random.Random(1)
    source = dice.randbytes(MIB)
    with ms.Socket() as sock:
        sock.listen(ipc)
        receivers = [processes.start(_receive, ipc, i) for i in range(3)]
        wait_until(lambda: len(sock.pipes) == 3, "connected")
        kills = 0
        for i in range(10_000):
            content = memoryview(source)[: dice.randrange(131_072, MIB)]
            sock.send_all(content, DEADLINE) if i % 5 == 0 else sock.send(content, DEADLINE)
            while dice.random() < 0.5 and sock.stats()["depth"]:
                sock.recv(0)
            if i % 100 == 99:
                victim = receivers.pop(dice.randrange(3))
                victim.kill()
                victim.join()
                receivers.append(processes.start(_receive, ipc, i))
                kills += 1
        assert kills == 100
        for receiver in receivers:
            receiver.kill()
            receiver.join()
        wait_until(lambda: not sock.pipes, "all are gone")
        while sock.stats()["depth"]:  # what was passed back
            sock.recv(0)
        wait_until(lambda: sock.stats()["arena_used"] == 0, "the arena is empty")


def _take_and_hold(sock: ms.Socket, ipc: str) -> None:
    msg = sock.recv_msg(copy=False)
    sock.send_to(msg.source, b"it has it")
    time.sleep(DEADLINE)


def test_a_killed_worker_gives_back_what_it_held(ipc: str, processes: Processes) -> None:
    """A process that shares the receiving Socket dies: nobody is disconnected, and the block comes back."""
    with ms.Socket() as server, ms.Socket(arena_limit=MIB) as client:
        server.listen(ipc)
        client.dial(ipc)
        worker = processes.start(_take_and_hold, server, ipc)
        client.send(b"w" * MIB)
        assert client.recv(DEADLINE) == b"it has it"
        with pytest.raises(ms.Timeout):
            client.send(b"x" * MIB, timeout=0.02)
        worker.kill()
        processes.join(worker, ok=False)
        client.send(b"x" * MIB, timeout=DEADLINE)
        assert server.recv(DEADLINE) == b"x" * MIB


def _send_and_die(ipc: str, n: int) -> None:
    sock = ms.Socket()
    sock.dial(ipc)
    for i in range(n):
        sock.send(bytes([i]) * MIB)
    sock.recv()


def test_what_a_killed_sender_has_sent_is_received(ipc: str, processes: Processes) -> None:
    with ms.Socket(recv_queue_bytes=16 * MIB) as sock:
        sock.listen(ipc)
        sender = processes.start(_send_and_die, ipc, 5)
        first = sock.recv_msg(DEADLINE, copy=False)
        wait_until(lambda: sock.stats()["depth"] == 4, "all are sent")
        sender.kill()
        processes.join(sender, ok=False)
        wait_until(lambda: not sock.pipes, "it is gone")
        assert first.content == b"\0" * MIB
        assert [sock.recv(DEADLINE) for _ in range(4)] == [bytes([i]) * MIB for i in range(1, 5)]
        assert first.content == b"\0" * MIB
        first.release()


def test_in_64_mib() -> None:
    """All that fits works, with queues that do not fit all at once; what does not fit is an error, and no more."""
    code = """
import multisocket as ms
MIB = 1 << 20
with ms.Socket() as server, ms.Socket() as client:
    server.listen("inproc://x")
    client.dial("inproc://x")
    for size in (1, 5, 20, 40):
        for _ in range(5):
            client.send(bytes([size]) * (size * MIB))
            assert server.recv(1) == bytes([size]) * (size * MIB)
    for size in (65, 100, 1000):
        for send in (client.send, client.send_all):
            try:
                send(bytes(size * MIB))
            except ms.OutOfSharedMemory as error:
                assert f"{size * MIB} bytes" in str(error) and "free in /dev/shm" in str(error), error
            else:
                raise SystemExit(f"{size} MiB were sent")
    held = []
    try:
        while True:
            client.send(bytes(10 * MIB), timeout=0)
            held.append(server.recv_msg(0, copy=False))
    except ms.OutOfSharedMemory:
        assert len(held) in (5, 6), len(held)
    client.send(b"small")
    assert server.recv(0) == b"small"
    for msg in held:
        msg.release()
    server.send_all(bytes(40 * MIB))
    assert len(client.recv(0)) == 40 * MIB
    client.send(bytes(40 * MIB))
    assert len(server.recv(0)) == 40 * MIB
print("fine")
"""
    assert in_small_memory("64m", code) == "fine"


def test_a_child_of_fork_leaves_its_parents_blocks_alone(ipc: str, processes: Processes) -> None:
    with ms.Socket() as server, ms.Socket() as client:
        server.listen(ipc)
        client.dial(ipc)
        client.send(b"p" * MIB)
        msg = server.recv_msg(DEADLINE, copy=False)
        processes.join(processes.start(msg.release))
        client.send(b"q" * MIB)
        assert msg.content == b"p" * MIB
        assert server.recv(DEADLINE) == b"q" * MIB


def test_nothing_grows(ipc: str) -> None:
    """Mixed messages in a fresh process, after a warm-up: neither memory nor descriptors nor mappings grow."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "mixed_messages.py"), "60000"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
