"""A program that forks while its Sockets' threads are about: Python warns of nothing, connections live on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DEADLINE, Processes

BEGINNING = """
import multiprocessing, os, sys, threading, time
import multisocket as ms

IPC, = sys.argv[1:]

def fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def echo(sock):
    for msg in sock:
        sock.send_to(msg.source, msg.content)
"""

PROGRAMS = {
    "connections live on": """
        one, other = ms.Socket(), ms.Socket()
        for address in ["inproc://x", IPC]:
            pipe = other.dial(one.listen(address).address)
            for i in range(20):
                fork()
                one.send(b"%d" % i)
                assert other.recv(5) == b"%d" % i
            other.stop_dial(address)
            for pipe in other.pipes:
                other.close_pipe(pipe.id)
        """,
    "connections are made": """
        one = ms.Socket()
        one.listen(IPC)
        for i in range(20):
            fork()
            with ms.Socket() as other:
                other.dial(IPC)
                fork()
                other.send(b"%d" % i)
                assert one.recv(5) == b"%d" % i
        """,
    "timers are kept": """
        one = ms.Socket()
        one.dial(IPC, dial_async=True, min_reconnect_time=0.2, max_reconnect_time=0.2)
        with ms.Socket() as other:
            other.listen(IPC)
            while not other.pipes:
                fork()
                time.sleep(0.01)
        """,
    "workers share a Socket": """
        with ms.Socket() as jobs, ms.Socket() as client:
            jobs.listen(IPC)
            context = multiprocessing.get_context("fork")
            for _ in range(4):
                context.Process(target=echo, args=(jobs,)).start()
            client.dial(IPC)
            client.send_many([b"one", b"two", b"three"])
            assert sorted(client.recv(5) for _ in range(3)) == [b"one", b"three", b"two"]
        """,
    "a child makes Sockets": """
        one = ms.Socket()
        one.listen(IPC)
        def child():
            with ms.Socket() as other:
                other.dial(IPC)
                fork()
                other.send(b"x")
                assert other.recv(5) == b"y"
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        msg = one.recv_msg(5)
        one.send_to(msg.source, b"y")
        process.join()
        assert process.exitcode == 0
        """,
}

# Where there are other threads, Python may well warn; but nothing hangs.
THREADS = {
    "two threads fork": """
        one, other = ms.Socket(), ms.Socket()
        one.listen(IPC)
        other.dial(IPC)
        threads = [threading.Thread(target=lambda: [fork() for _ in range(30)]) for _ in range(3)]
        for thread in threads: thread.start()
        for i in range(50):
            one.send(b"%d" % i)
            assert other.recv(5) == b"%d" % i
            with ms.Socket() as third:
                third.dial(IPC)
        for thread in threads: thread.join()
        """,
    "a fork in the background thread": """
        one, other = ms.Socket(), ms.Socket()
        told = threading.Event()
        def on_pipe(event, pipe):
            if event == "open":
                fork()
                told.set()
        one.on_pipe = on_pipe
        one.listen(IPC)
        other.dial(IPC)
        assert told.wait(5)
        one.send(b"x")
        assert other.recv(5) == b"x"
        """,
    "the background thread is busy": """
        one, other = ms.Socket(), ms.Socket()
        begun, goes_on = threading.Event(), threading.Event()
        def on_pipe(event, pipe):
            begun.set()
            goes_on.wait(5)
        one.on_pipe = on_pipe
        one.listen(IPC)
        other.dial(IPC, dial_async=True)
        assert begun.wait(5)
        fork()
        goes_on.set()
        one.send(b"x", 5)
        assert other.recv(5) == b"x"
        fork()
        one.send(b"y")
        assert other.recv(5) == b"y"
        """,
}


def _check(processes: Processes, folder: Path, program: str, text: str) -> None:
    path = folder / "program.py"
    lines = [line.removeprefix("        ") for line in text.splitlines()]
    path.write_text(program + "\n".join(lines))
    process = processes.started(
        subprocess.Popen(
            [sys.executable, "-W", "always" if text in PROGRAMS.values() else "ignore", path, f"ipc://{folder}/s"],
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_a_warning(processes: Processes, folder: Path, name: str) -> None:
    _check(processes, folder, BEGINNING, PROGRAMS[name])


@pytest.mark.parametrize("name", THREADS)
def test_with_threads(processes: Processes, folder: Path, name: str) -> None:
    _check(processes, folder, BEGINNING, THREADS[name])
