"""Runs the participants of a cell in fresh processes, under a deadline, and leaves none of them behind."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

# Forks of a process that has imported the libraries and used none of them: as fresh as spawned ones, and
# faster.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bench.peers"])

Metrics = dict[str, float]
"""What a participant has measured: rates in messages a second, times in seconds."""

Ready = Callable[[], None]
"""A participant calls it when others may connect to it."""

# How long a participant that has reported may take to end by itself, seconds.
_GRACE = 1.0

_READY, _RESULT, _ERROR = "ready", "result", "error"


class CellFailed(Exception):
    """A participant raised, died or came to no end; the text says which."""


@dataclass(frozen=True)
class Role:
    """A participant: ``function(ready, *args)`` runs in a process of its own, or a thread."""

    function: Callable[..., list[Metrics]]
    args: tuple[Any, ...]


def run(
    roles: Sequence[Role],
    *,
    deadline: float,
    in_threads: bool = False,
    on_started: Callable[[], object] = lambda: None,
) -> list[Metrics]:
    """Starts each role when the one before is ready, and gives what all of them report.

    :param deadline: seconds for everything.
    :param in_threads: all roles are threads of one fresh process.
    :param on_started: called when the last one runs.
    :raises CellFailed: no result, and why.
    """
    if in_threads:
        roles = [Role(_run_threads, (roles, deadline))]
    crew = _Crew(time.monotonic() + deadline)
    try:
        for role in roles:
            crew.start(role)
        on_started()
        return crew.results()
    finally:
        crew.dismiss()


@dataclass
class _Crew:
    """The processes of a cell.

    :param end: when all must be done, on the monotonic clock.
    """

    end: float
    _processes: list[Any] = field(default_factory=list)
    _pipes: list[Connection] = field(default_factory=list)

    def start(self, role: Role) -> None:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_play, args=(theirs, role), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)
        self._await_one([ours], _READY)

    def results(self) -> list[Metrics]:
        waiting = list(self._pipes)
        found: list[Metrics] = []
        while waiting:
            pipe, metrics = self._await_one(waiting, _RESULT)
            waiting.remove(pipe)
            found += metrics
        return found

    def _await_one(self, pipes: list[Connection], what: str) -> tuple[Connection, Any]:
        ready = wait(pipes, max(0.0, self.end - time.monotonic()))
        if not ready:
            raise CellFailed("no end in time")
        pipe = ready[0]
        assert isinstance(pipe, Connection)
        try:
            kind, value = pipe.recv()
        except EOFError:
            raise CellFailed("a process died") from None
        if kind != what:
            raise CellFailed(str(value))
        return pipe, value

    def dismiss(self) -> None:
        end = time.monotonic() + _GRACE
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()


def _play(pipe: Connection, role: Role) -> None:
    try:
        pipe.send((_RESULT, role.function(lambda: pipe.send((_READY, None)), *role.args)))
    except BaseException as error:
        pipe.send((_ERROR, f"{type(error).__name__}: {error}"))


def _run_threads(ready: Ready, roles: Sequence[Role], deadline: float) -> list[Metrics]:
    """A role that plays others in threads.

    No thread is ever stopped: when one fails or is late, the process ends.
    """
    ready()
    news = threading.Semaphore(0)
    found: list[Metrics] = []
    errors: list[BaseException] = []
    ended = [threading.Event() for _ in roles]

    def play(role: Role, end: threading.Event) -> None:
        try:
            found.extend(role.function(news.release, *role.args))
        except BaseException as error:
            errors.append(error)
        end.set()
        news.release()

    for role, end in zip(roles, ended, strict=True):
        threading.Thread(target=play, args=(role, end), daemon=True).start()
        news.acquire(timeout=deadline)
        if errors:
            raise errors[0]
    while not all(end.is_set() for end in ended):
        news.acquire(timeout=deadline)
        if errors:
            raise errors[0]
    return found
