"""Processes killed at random instants, also while they sleep: the others go on, and every message is accounted for."""

from __future__ import annotations

import itertools
import os
import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.protocol import Pull, Push
from multisocket.shm import Ring

KILLS = int(os.environ.get("MULTISOCKET_TEST_KILLS", "300"))
RECORD = struct.Struct("<II")


def _produce(address: str, number: int, sent: str) -> None:
    """Notes what it has sent, after each send."""
    note = os.open(sent, os.O_WRONLY | os.O_CREAT)
    with Push(recv_queue_bytes=4096) as push:
        push.dial(address)
        for i in itertools.count():
            push.send(RECORD.pack(number, i))
            os.pwrite(note, struct.pack("<I", i + 1), 0)


def _consume(pull: Pull, got: str) -> None:
    """Notes each message after it was received."""
    note = os.open(got, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for content in pull:
        os.write(note, content)


class Field:
    """Producers and consumers around one shared Socket; whoever is killed is replaced."""

    def __init__(self, folder: Path, processes: Processes, pull: Pull, ipc: str) -> None:
        self.folder, self.processes, self.pull, self.ipc = folder, processes, pull, ipc
        self.numbers = itertools.count()
        self.running: list[tuple[str, Any]] = []
        self.killed: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        number = next(self.numbers)
        file = str(self.folder / f"{kind}{number}")
        if kind == "producer":
            process = self.processes.start(_produce, self.ipc, number, file)
        else:
            process = self.processes.start(_consume, self.pull, file)
        self.running.append((kind, process))

    def kill(self, place: int) -> None:
        kind, process = self.running.pop(place)
        process.kill()
        process.join()
        self.killed[kind] += 1

    def received(self) -> int:
        return self.pull.socket.stats()["received"]


@pytest.mark.timeout(280)
@pytest.mark.parametrize("limit", [4, 4096], ids=["full-or-empty", "roomy"])
def test_random_kills(folder: Path, ipc: str, processes: Processes, limit: int) -> None:
    """With a queue of 4 messages, processes mostly sleep: producers without room, or consumers without messages."""
    dice = random.Random(limit)
    with Pull(recv_queue_size=limit) as pull:
        pull.listen(ipc)
        field = Field(folder, processes, pull, ipc)
        for _ in range(2):
            field.add("producer")
            field.add("consumer")
        for _ in range(KILLS // 2):
            before = field.received()
            wait_until(lambda before=before: field.received() > before, "the others go on")
            time.sleep(dice.random() * 0.003)  # the random instant
            kind = field.running[place := dice.randrange(4)][0]
            field.kill(place)
            field.add(kind)
        for place in reversed(range(4)):
            if field.running[place][0] == "producer":
                field.kill(place)
        wait_until(lambda: pull.socket.stats()["depth"] == 0, "the consumers empty the queue")
        last = field.received()
        wait_until(lambda: _counted(folder) + field.killed["consumer"] >= last, "the consumers note the last")
    processes.join(*(process for _, process in field.running))
    _check(folder, field.killed["consumer"])


def _counted(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("consumer*")) // RECORD.size


def _check(folder: Path, killed_consumers: int) -> None:
    got = Counter(pair for file in folder.glob("consumer*") for pair in RECORD.iter_unpack(_whole(file.read_bytes())))
    assert max(got.values()) == 1, "twice"
    lost = 0
    for file in folder.glob("producer*"):
        number = int(file.name.removeprefix("producer"))
        sent = int.from_bytes(file.read_bytes(), "little")
        mine = [i for producer, i in got if producer == number]
        # It was killed in a send: that one may have come or not.
        assert not mine or max(mine) <= sent, "never sent"
        lost += sum(1 for i in range(sent) if (number, i) not in got)
    assert lost <= killed_consumers, "lost more than what killed consumers had taken"


def _whole(data: bytes) -> bytes:
    return data[: len(data) // RECORD.size * RECORD.size]


def _hold(sock: ms.Socket, ready: str) -> None:
    Ring.open(ready).push(b"")
    try:
        sock.recv(DEADLINE)
    except ms.Closed:
        os._exit(7)


def _own_and_share(ready: str, method: str) -> None:
    import multiprocessing

    sock = ms.Socket()
    context = multiprocessing.get_context(method)
    children = [context.Process(target=_hold, args=(sock, ready)) for _ in range(2)]
    for child in children:
        child.start()
    ring = Ring.open(ready)
    for child in children:
        ring.push(struct.pack("<I", child.pid or 0))
    time.sleep(DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_the_owners_death_closes_it_for_its_children(processes: Processes, method: str) -> None:
    ready = Ring.create(f"/test-owner-{os.getpid()}-{method}")
    # A fork of this process would take its forkserver for its own.
    owner = processes.start(_own_and_share, ready.name, method, method="spawn")
    notes = [ready.pop(DEADLINE) for _ in range(4)]
    children = [int.from_bytes(note, "little") for note in notes if note]
    owner.kill()
    for child in children:
        wait_until(lambda child=child: not os.path.exists(f"/proc/{child}") or _is_dead(child), "they end")
    processes.join(owner, ok=False)
    ready.unlink()


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _receive_some(ipc: str, n: int) -> None:
    """Receives n messages, and then nothing more until it is killed."""
    with ms.Socket() as sock:
        sock.dial(ipc)
        sock.recv()
        for _ in range(n):
            sock.recv()
        sock.send(b"received")
        time.sleep(DEADLINE)


def test_to_one_messages_of_a_killed_peer_go_to_another(ipc: str, processes: Processes) -> None:
    with ms.Socket() as server, ms.Socket() as second:
        server.listen(ipc)
        first = processes.start(_receive_some, ipc, 20)
        wait_until(lambda: server.pipes, "connected")
        server.send_all(b"not to be sent again")
        server.send_many([b"%d" % i for i in range(100)])
        server.send_all(b"nor this")
        assert server.recv(DEADLINE) == b"received"
        second.dial(ipc)
        wait_until(lambda: len(server.pipes) == 2, "connected")
        first.kill()
        processes.join(first, ok=False)
        assert [second.recv(DEADLINE) for _ in range(80)] == [b"%d" % i for i in range(20, 100)]
        with pytest.raises(ms.Timeout):
            second.recv(timeout=0)


def test_a_killed_peer_is_removed_and_told(ipc: str, processes: Processes) -> None:
    with ms.Socket() as server:
        events: list[tuple[str, int]] = []
        server.on_pipe = lambda event, pipe: events.append((event, pipe.peer_pid))
        server.listen(ipc)
        peer = processes.start(_receive_some, ipc, 0)
        wait_until(lambda: events, "connected")
        peer.kill()
        wait_until(lambda: events == [("open", peer.pid), ("close", peer.pid)], "it was told")
        assert server.pipes == []
        processes.join(peer, ok=False)
