"""What all tests share: addresses of their own, processes that are never left behind, and a look for leftovers."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from multisocket import names, shm

# Whoever starts the tests in the background of a script has it ignored, and so would all programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

DEADLINE = 30.0
START_METHODS = ["fork", "spawn", "forkserver"]


def names_in_shm() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("ms-")}


def wait_until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Looks until the condition gives something true. Only for what cannot be waited for by itself."""
    end = time.monotonic() + deadline
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {deadline} s in vain: {what}"
        time.sleep(0.002)
    return result


def until_full(send: Callable[[int], object]) -> int:
    """Sends numbered messages until one times out; how many were sent."""
    for number in itertools.count():
        try:
            send(number)
        except TimeoutError:
            return number
    raise AssertionError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ms"))
    yield path
    sockets = [one for one in path.rglob("*") if stat.S_ISSOCK(one.lstat().st_mode)]
    shutil.rmtree(path)
    assert not sockets, "socket files are left behind"


@pytest.fixture
def ipc(folder: Path) -> str:
    return f"ipc://{folder}/s"


LOCAL = ["inproc", "ipc"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of an address run over each transport; those marked ``local`` only within one machine."""
    if "address" in metafunc.fixturenames:
        is_local = metafunc.definition.get_closest_marker("local") is not None
        metafunc.parametrize("address", LOCAL if is_local else [*LOCAL, "tcp"], indirect=True)


@pytest.fixture
def address(request: pytest.FixtureRequest, folder: Path) -> str:
    """An address of each transport that needs nothing else."""
    if request.param == "tcp":
        return f"tcp://127.0.0.1:{free_port()}"
    return f"ipc://{folder}/s" if request.param == "ipc" else f"inproc://{folder.name}"


def free_port() -> int:
    """One that nobody listens on; from below those that the system gives out by itself."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(10000, 32000)))
            return int(probe.getsockname()[1])


class Processes:
    """Starts processes; ends those that are left at the end of the test."""

    def __init__(self) -> None:
        self._started: list[Any] = []

    def start(self, target: Callable[..., Any], *args: Any, method: str = "fork") -> Any:
        process = multiprocessing.get_context(method).Process(target=target, args=args)
        process.start()
        self._started.append(process)
        return process

    def run(self, code: str, *args: str) -> subprocess.Popen[str]:
        """A fresh interpreter."""
        return self.started(
            subprocess.Popen(
                [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )

    def started(self, process: Any) -> Any:
        """It is ended as the others are."""
        self._started.append(process)
        return process

    def join(self, *processes: Any, ok: bool = True) -> None:
        for process in processes:
            process.join(DEADLINE)
            assert process.exitcode is not None, "a process hangs"
            assert not ok or process.exitcode == 0, f"a process ended with {process.exitcode}"

    def end(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError, OSError):
                process.kill()
            if isinstance(process, subprocess.Popen):
                process.communicate()
            else:
                process.join()


@pytest.fixture
def processes() -> Iterator[Processes]:
    running = Processes()
    yield running
    running.end()


@pytest.fixture
def threads(folder: Path) -> Iterator[Callable[..., threading.Thread]]:
    """Starts threads, and sees that they end."""
    started: list[threading.Thread] = []

    def start(target: Callable[..., Any], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        started.append(thread)
        return thread

    yield start
    for thread in started:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "a thread hangs"


@pytest.fixture
def make_socket(folder: Path) -> Iterator[Callable[..., ms.Socket]]:
    """Makes Sockets that are closed at the end of the test, before the folder of their addresses goes."""
    with contextlib.ExitStack() as made:
        yield lambda **options: made.enter_context(ms.Socket(**{"send_stop_timeout": 0.0, **options}))


@pytest.fixture
def pair(make_socket: Callable[..., ms.Socket], address: str) -> tuple[ms.Socket, ms.Socket]:
    """A listening and a dialing Socket, connected, over each of these transports."""
    return connected(make_socket, address)


def connected(make_socket: Callable[..., ms.Socket], address: str, **options: Any) -> tuple[ms.Socket, ms.Socket]:
    server, client = make_socket(**options), make_socket(**options)
    server.listen(address)
    client.dial(address)
    wait_until(lambda: server.pipes, "the server has its pipe, too: over a network that takes a while")
    return server, client


def in_small_memory(size: str, code: str) -> str:
    """Runs Python code in a mount namespace of its own with a /dev/shm of that size; what it has printed."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if os.geteuid() == 0:
        command.remove("--map-root-user")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make a mount namespace (unshare --mount)")
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        [*command, mount, sys.executable, code], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def children() -> set[int]:
    """Processes that this one has started, or had its fork server start; but for multiprocessing's own servants."""
    found = set()
    for pid in _children_of("self"):
        command = _command(pid)
        if b"forkserver" in command:
            found |= {worker for worker in _children_of(str(pid)) if _command(worker)}
        elif command and b"resource_tracker" not in command:
            found.add(pid)
    return found


def _children_of(process: str) -> set[int]:
    found = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in Path(f"/proc/{process}/task/{task}/children").read_text().split()}
    return found


def _command(pid: int) -> bytes:
    """Nothing of one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No process, no shared memory of this process."""
    yield
    assert not children(), "child processes are left behind"
    prefix = Path(names.guard_path()).name.removesuffix(".guard")
    left = {name for name in names_in_shm() if name.startswith(f"{prefix}-")}
    assert not left, "shared memory is left behind"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """When all workers have ended, and one process has looked after what was killed, nothing dead is left."""
    if hasattr(session.config, "workerinput"):
        return
    ms.clean()
    left = sorted(name for name in names_in_shm() if not _is_somebodys(name))
    if left:
        print(f"\nleft behind in /dev/shm: {left}")
        session.exitstatus = 1


def _is_somebodys(name: str) -> bool:
    """Whether the process lives that made it: ours, or one that has nothing to do with the tests."""
    prefix = name.removesuffix(".guard") if name.endswith(".guard") else name.rpartition("-")[0]
    guard = f"/dev/shm/{prefix}.guard"
    if guard == names.guard_path():
        return True
    try:
        with open(guard, "rb") as file:
            return shm.is_locked(file.fileno())
    except OSError:
        return False
