"""Pools and executors that end with their test; scripts that use them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, wait_until
from multisocket.pool import Executor, Pool


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    with contextlib.ExitStack() as made:

        def make(processes: int = 2, *, method: str = "fork", **options: Any) -> Pool:
            return made.enter_context(Pool(processes, context=multiprocessing.get_context(method), **options))

        yield make


@pytest.fixture
def make_executor() -> Iterator[Callable[..., Executor]]:
    with contextlib.ExitStack() as made:

        def make(processes: int = 2, *, method: str = "fork", **options: Any) -> Executor:
            executor = Executor(processes, multiprocessing.get_context(method), **options)
            made.callback(executor.terminate_workers)
            return executor

        yield make


class Script:
    """A Python program of its own, in a process group of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """The next one that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self) -> None:
        """Ctrl-C: to all of its processes."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Waits for it: exit code, the rest of what it has printed, its errors. Nothing of it is left."""
        out, errors = self.process.communicate(timeout=DEADLINE)
        self.wait_for_all()
        return self.process.returncode, out.strip(), errors

    def wait_for_all(self) -> None:
        """Until all of its processes have ended."""
        wait_until(lambda: not living(self.process.pid), "all processes of the script have ended")


def living(group: int) -> list[int]:
    """Processes of a group."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, _, its_group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(pid))
    return found


@pytest.fixture
def run_script(tmp_path: Path, processes: Processes) -> Iterator[Callable[..., Script]]:
    """Runs the text of a program; in the end all of its processes are ended."""
    started: list[Script] = []

    def run(text: str, *args: str) -> Script:
        path = tmp_path / f"script{len(started)}.py"
        path.write_text(textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, path.name, *args],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        processes.started(process)
        started.append(Script(process))
        return started[-1]

    yield run
    for script in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.process.pid, signal.SIGKILL)
        script.wait_for_all()
    ms.clean()
