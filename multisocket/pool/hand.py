"""Hands: worker processes, as the boss starts, watches and reaps them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from .processes import Main, ensure_fork_server, process_class


class _Sentinel:
    """What the background thread watches: readable when the process has ended.

    ``Process.sentinel`` is the end of a pipe, whose other end is also with all that the worker has forked, and with
    what another thread forks just then: while these live, the worker would look alive. So it serves only where the
    system has nothing better.
    """

    def __init__(self, process: BaseProcess) -> None:
        self._own = _pidfd(process.pid)
        self._descriptor = process.sentinel if self._own is None else self._own

    def fileno(self) -> int:
        return self._descriptor

    def __del__(self) -> None:
        own = getattr(self, "_own", None)
        if own is not None:
            os.close(own)


def _pidfd(pid: int | None) -> int | None:
    try:
        return os.pidfd_open(pid)  # type: ignore[arg-type]
    except (AttributeError, OSError):
        return None


class Hand:
    """A worker process, as the boss knows it."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.sentinel = _Sentinel(process)
        self.overdue: str | None = None
        """Why it was killed for the time that its task took."""

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether it ends within so many seconds."""
        return bool(wait([self.sentinel], timeout))  # type: ignore[list-item]

    def reap(self) -> None:
        """Takes its exit code, when it has ended."""
        with _processes:
            self.process.join()
        # Any thread that starts a process takes exit codes, too: it may have this one, but not noted it yet.
        end = time.monotonic() + 1.0
        while self.process.exitcode is None and time.monotonic() < end:
            time.sleep(0.001)


# Held by whoever starts a process or takes its exit code: multiprocessing does the one in the course of the other, and
# for two threads at once the exit code may be lost.
_processes = threading.Lock()


@contextlib.contextmanager
def _without_interrupts(method: str, main: Main) -> Iterator[None]:
    """Has a new process begin with SIGINT blocked: workers leave that to the boss, but are not ready for it at once."""
    if method == "forkserver":  # it would pass that on to everybody's processes
        ensure_fork_server(main)
        yield
        return
    if method == "spawn":
        resource_tracker.ensure_running()  # likewise
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(context: Any, target: Any, args: tuple[Any, ...], name: str, main: Main) -> Hand:
    """Starts a worker.

    :param context: of ``multiprocessing``.
    :param main: how workers import the main module: see ``main_module.py``.
    :raises OSError: processes or memory are short.
    """
    process = process_class(context)(target=target, args=args, name=name, daemon=False)
    with _processes, _without_interrupts(context.get_start_method(), main):
        process.start()
    return Hand(process)


def how_ended(process: BaseProcess) -> str:
    """For people."""
    code = process.exitcode
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (is memory short?)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _forget_parents() -> None:
    global _processes
    _processes = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents)
