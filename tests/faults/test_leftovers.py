"""Whatever ends a process, nothing of it stays in shared memory or in the file system."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, in_small_memory, names_in_shm, wait_until
from multisocket import names

PROGRAM = """
import os, sys, time
import multisocket as ms
from multisocket import names
how, path = sys.argv[1:]
sock = ms.Socket()
sock.listen("ipc://" + path)
peer = ms.Socket(recv_queue_size=1)
peer.dial("ipc://" + path)
sock.send(b"fills it")
print(os.path.basename(names.guard_path()).removesuffix(".guard"), flush=True)
if how == "exit":
    sys.exit(0)
if how == "close":
    sock.close(); peer.close()
if how == "raise":
    raise ValueError("on purpose")
if how == "_exit":
    os._exit(0)
if how == "kill":
    os.kill(os.getpid(), 9)
if how == "recv":
    sock.recv()
if how == "send":
    sock.send(b"no room")
"""


def _prefix(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _left(prefix: str) -> set[str]:
    return {name for name in names_in_shm() if name.startswith(prefix)}


def _sleeps(pid: int) -> bool:
    return "futex" in Path(f"/proc/{pid}/wchan").read_text()


@pytest.mark.parametrize(("how", "code"), [("close", 0), ("exit", 0), ("raise", 1)])
def test_ends_by_itself(processes: Processes, folder: Path, how: str, code: int) -> None:
    process = processes.run(PROGRAM, how, f"{folder}/s")
    prefix = _prefix(process)
    assert process.wait(DEADLINE) == code
    assert not _left(prefix)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("blocked", ["recv", "send"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ends_by_a_signal_in_a_blocking_call(
    processes: Processes, folder: Path, blocked: str, number: signal.Signals
) -> None:
    process = processes.run(PROGRAM, blocked, f"{folder}/s")
    prefix = _prefix(process)
    wait_until(lambda: _sleeps(process.pid), "it blocks")
    process.send_signal(number)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    assert not _left(prefix)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("how", ["kill", "_exit"])
def test_the_next_process_cleans_up(processes: Processes, folder: Path, how: str) -> None:
    process = processes.run(PROGRAM, how, f"{folder}/s")
    prefix = _prefix(process)
    process.wait(DEADLINE)
    second = processes.run(PROGRAM, "close", f"{folder}/other")
    assert second.wait(DEADLINE) == 0
    assert not _left(prefix)
    assert not list(folder.iterdir())


def test_the_command_cleans_up(processes: Processes, folder: Path) -> None:
    process = processes.run(PROGRAM, "kill", f"{folder}/s")
    prefix = _prefix(process)
    process.wait(DEADLINE)
    command = [sys.executable, "-m", "multisocket", "clean"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout.rstrip().endswith("removed")
    assert not _left(prefix)
    assert not list(folder.iterdir())


def test_a_survivor_of_a_pipe_cleans_up(processes: Processes, ipc: str) -> None:
    with ms.Socket() as sock:
        sock.listen(ipc)
        peer = processes.start(_dial_and_wait, ipc)
        prefix = sock.recv(DEADLINE).decode()
        assert _left(prefix)
        peer.kill()
        wait_until(lambda: not _left(prefix), "it was cleaned")
        processes.join(peer, ok=False)


def _dial_and_wait(ipc: str) -> None:
    sock = ms.Socket()
    sock.dial(ipc)
    sock.send(Path(names.guard_path()).name.removesuffix(".guard").encode())
    sock.recv()


def test_what_lives_is_not_touched(processes: Processes, folder: Path) -> None:
    process = processes.run(PROGRAM, "recv", f"{folder}/s")
    prefix = _prefix(process)
    before = _left(prefix)
    assert len(before) == 3
    ms.clean()
    assert _left(prefix) == before
    assert (folder / "s").exists()
    process.terminate()
    process.communicate(timeout=DEADLINE)


def test_children_of_multiprocessing_clean_up_what_they_do_not_close(processes: Processes, ipc: str) -> None:
    with ms.Socket() as sock:
        sock.listen(ipc)
        for method in ("fork", "spawn"):
            child = processes.start(_forget_to_close, ipc, method=method)
            prefix = sock.recv(DEADLINE).decode()
            processes.join(child)
            assert not _left(prefix)


def _forget_to_close(ipc: str) -> None:
    global _kept
    _kept = ms.Socket()
    _kept.dial(ipc)
    _kept.send(Path(names.guard_path()).name.removesuffix(".guard").encode())


_kept: ms.Socket


def test_sigterm_does_what_it_did(processes: Processes) -> None:
    """A handler of the program stays in force, and is not called twice."""
    code = """
import os, signal, sys
import multisocket as ms
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
sock = ms.Socket()
print("ready", flush=True)
sock.recv()
"""
    process = processes.run(code)
    assert _prefix(process) == "ready"
    wait_until(lambda: _sleeps(process.pid), "it blocks")
    process.terminate()
    assert process.wait(DEADLINE) == 42


def test_a_collected_socket_is_closed_with_a_warning() -> None:
    sock = ms.Socket()
    name = sock._name.lstrip("/")
    assert name in names_in_shm()
    del sock
    with pytest.warns(ResourceWarning, match="was not closed"):
        gc.collect()
    assert name not in names_in_shm()


def test_full_shared_memory_is_an_error_and_no_sigbus() -> None:
    """In a mount namespace of its own, with /dev/shm of 1 MiB: the send fails, and the Socket works on."""
    code = """
import multisocket as ms
with ms.Socket(recv_queue_bytes=1 << 22) as server, ms.Socket() as client:
    server.listen("inproc://x")
    client.dial("inproc://x")
    sent = 0
    try:
        while True:
            client.send(bytes(30000), timeout=0)
            sent += 1
    except ms.OutOfSharedMemory as error:
        assert "free in /dev/shm" in str(error) and "Enlarge" in str(error), error
    assert 20 < sent < 40, sent
    for _ in range(sent):
        assert server.recv(0) == bytes(30000)
    client.send(b"usable")
    assert server.recv(0) == b"usable"
print("fine")
"""
    assert in_small_memory("1m", code) == "fine"


_FORKS_EARLY = """
import multisocket as ms, os, sys, threading, time
from multisocket.background import background

background().call(threading.Event().wait)  # it cannot look at what is made now
sock = ms.Socket()
listener = sock.listen(sys.argv[1])
if os.fork() == 0:
    print(os.getpid(), listener.address, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("scheme", ["ipc", "ipc raw", "tcp"])
def test_a_child_keeps_no_listener_that_was_just_made(
    make_socket: Callable[..., ms.Socket], processes: Processes, folder: Path, scheme: str
) -> None:
    place = {"ipc": f"ipc://{folder}/s", "ipc raw": f"ipc://{folder}/s?raw=true", "tcp": "tcp://127.0.0.1:0"}[scheme]
    process = processes.run(_FORKS_EARLY, place)
    assert process.stdout is not None
    child, address = process.stdout.readline().split()
    try:
        process.kill()
        process.wait()
        with pytest.raises(ms.ConnectionRefused):
            make_socket().dial(address, raw=scheme == "ipc raw")
    finally:
        os.kill(int(child), signal.SIGKILL)
    ms.clean()
