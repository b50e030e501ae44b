"""What a worker process does: takes batches from the one Socket that all workers share, runs their tasks, and sends
each outcome before it begins the next task. So whenever it is killed, at most the running task is in doubt."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import (  # type: ignore[attr-defined]
    ExceptionWithTraceback,  # pyright: ignore[reportAttributeAccessIssue]
    MaybeEncodingError,  # pyright: ignore[reportAttributeAccessIssue]
    RemoteTraceback,  # pyright: ignore[reportAttributeAccessIssue]
)
from types import GeneratorType
from typing import Any

from .. import shm
from ..errors import Closed, Error, OutOfSharedMemory
from ..socket import Socket
from . import parcel
from .errors import InitializerFailed
from .forms import (
    BATCH,
    CALL,
    DONE,
    ENDED,
    IN_PARTS,
    KEPT,
    LENGTH,
    MAP,
    NOT_READY,
    ONE,
    OUTCOME,
    PART,
    RAISED,
    STAR,
    STREAM,
    UNKNOWN,
    UNSENDABLE,
)
from .functions import WITHOUT_MAIN, Loaded, UnknownFunction
from .processes import Later, Main, import_main

PARTS_AHEAD = 64
"""Values of a generator that may be on their way."""

_STOPPED = -2
_MEMORY_SECONDS = 3.0


def _call(function: Callable[..., Any], arguments: Any) -> Any:
    args, kwargs = arguments
    return function(*args, **kwargs)


_WAYS: dict[int, Callable[[Callable[..., Any], Any], Any]] = {
    ONE: lambda function, argument: function(argument),
    CALL: _call,
    MAP: lambda function, arguments: list(map(function, arguments)),
    STAR: lambda function, arguments: list(itertools.starmap(function, arguments)),
    STREAM: lambda function, argument: function(argument),
}


def work(
    sock: Socket,
    board_name: str,
    slot: int,
    guard: str,
    main: Main,
    initializer: Later,
    max_tasks: int | None,
) -> None:
    """The whole life of a worker.

    :param sock: that all workers take batches from, and send outcomes through.
    :param board_name: of the board where it claims them.
    :param slot: its own there.
    :param guard: path of a file that the boss's process keeps locked while it lives.
    :param main: how it imports the main module.
    :param initializer: that it calls first, or None, and with what.
    :param max_tasks: after so many it ends; None: never.
    """
    try:
        shm.end_with(guard)
        board = shm.Board.open(board_name)
    except OSError:  # the boss has ended already
        return
    with contextlib.suppress(Closed):
        if _initialized(sock, slot, main, initializer):
            board.ready(slot)
            Worker(sock, board, slot).run(max_tasks)


def _leave_signals_to_boss() -> None:
    # Ctrl-C goes to all processes of a terminal. Not SIG_IGN: that would be inherited by programs that tasks start.
    signal.signal(signal.SIGINT, lambda *_: None)
    # A handler that the boss's process has set is about that process.
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Blocked until here, see hand.py; not for programs that tasks start.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _initialized(sock: Socket, slot: int, main: Main, later: Later) -> bool:
    try:
        _import_main(main)
        _leave_signals_to_boss()
        initializer, initargs = _opened(later)
        if initializer is not None:
            initializer(*initargs)
    except BaseException as error:
        packed = _surely_packed(error)
        flags = 0 if isinstance(packed, bytes) else IN_PARTS
        _send_surely(sock, OUTCOME.pack(0, 0, NOT_READY, flags, 0, slot), packed)
        return False
    return True


def _import_main(main: Main) -> None:
    if not main:
        return
    try:
        import_main(main)
    except BaseException as error:
        path = main.get("init_main_from_path") or main["init_main_from_name"]
        raise InitializerFailed(
            f"workers cannot import the main module ({path}): {type(error).__name__}: {error}"
        ) from error


def _opened(later: Later) -> tuple[Callable[..., object] | None, tuple[Any, ...]]:
    try:
        return later.open()  # type: ignore[no-any-return]
    except AttributeError as error:
        raise InitializerFailed(f"workers do not know their initializer: {error}: {WITHOUT_MAIN}") from error


class Worker:
    """Runs tasks.

    :param sock: the workers' Socket.
    :param board: where it claims batches.
    :param slot: its own.
    """

    def __init__(self, sock: Socket, board: shm.Board, slot: int) -> None:
        self._socket = sock
        self._board = board
        self._slot = slot
        self._functions = Loaded()

    def run(self, max_tasks: int | None) -> None:
        """Until it has done so many tasks, is told to stop, or the Socket is closed (``Closed``)."""
        left = itertools.repeat(True) if max_tasks is None else iter([True] * (max_tasks - 1) + [False])
        while self._run_batch(self._board.take(self._socket, self._slot), left):
            pass

    def _run_batch(self, content: parcel.Content, left: Iterator[bool]) -> bool:
        """Whether it shall go on."""
        _, tasks, kind, flags, length, _ = BATCH.unpack_from(content)
        at = BATCH.size + length
        blob = bytes(content[BATCH.size : at])
        if flags & KEPT:
            content = memoryview(bytearray(content))
        begin, slot = self._board.begin, self._slot
        where = [at] if flags & IN_PARTS else _places(content, at, tasks)
        while (index := begin(slot)) >= 0:
            self._run_task(blob, kind, content, where[index], bool(flags & IN_PARTS))
            if not next(left):
                return False
        return index != _STOPPED

    def _run_task(self, blob: bytes, kind: int, content: parcel.Content, at: int, in_parts: bool) -> None:
        try:
            function = self._functions.get(blob)
            argument = parcel.unpack(content, at, in_parts)
            self._board.loaded(self._slot)
        except (UnknownFunction, AttributeError, ImportError) as error:
            if hasattr(error, "add_note") and "__main__" in str(error) and not isinstance(error, UnknownFunction):
                error.add_note(f"a worker has no such name: {WITHOUT_MAIN}")
            return self._send(UNKNOWN, _surely_packed(error))
        except BaseException as error:
            return self._fail(error)
        try:
            result = _WAYS[kind](function, argument)
            if kind == STREAM and isinstance(result, GeneratorType):
                return self._stream(result)
        except BaseException as error:
            if isinstance(error, Closed) and self._socket.closed:
                raise
            return self._fail(error)
        return self._finish(DONE, result)

    def _stream(self, values: Iterator[Any]) -> None:
        for value in values:
            self._await_reader()
            self._finish(PART, value)
            self._board.sent(self._slot)
        self._send(ENDED, b"")

    def _await_reader(self) -> None:
        """Not too far ahead of the boss: what is not read yet takes memory."""
        pause = 0.0002
        while not self._board.may_send(self._slot, PARTS_AHEAD):
            if self._socket.closed:
                raise Closed("the pool has ended")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _finish(self, what: int, result: Any) -> None:
        try:
            packed = parcel.pack(result)
        except BaseException as error:
            return self._send(UNSENDABLE, _packed_refusal(error, result))
        try:
            self._send(what, packed)
        except Closed:
            raise
        except Error as error:  # it is too long, or there is no shared memory for it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        try:
            packed = _packed_error(error)
        except BaseException as refusal:
            return self._send(UNSENDABLE, _packed_refusal(refusal, error))
        self._send(RAISED, packed)

    def _send(self, what: int, packed: parcel.Packed) -> None:
        flags = 0 if isinstance(packed, bytes) else IN_PARTS
        _send_surely(self._socket, self._board.outcome_head(self._slot, what, flags), packed)


def _send_surely(sock: Socket, head: bytes, packed: parcel.Packed) -> None:
    """Sends also if there is no memory for it just now: the boss gives some back when it has read what others sent.
    What takes little is sent in the end; errors of what takes more: as ``parcel.send``."""
    end = time.monotonic() + _MEMORY_SECONDS
    while True:
        try:
            return parcel.send(sock, head, packed)
        except OutOfSharedMemory:
            if not isinstance(packed, bytes) and time.monotonic() >= end:
                raise
            time.sleep(0.05)


class _Failure(ExceptionWithTraceback):  # type: ignore[misc]
    """An error with its traceback as text, which arrives even if it cannot be unpickled itself."""

    def __init__(self, error: BaseException, packed: bytes) -> None:
        super().__init__(error, error.__traceback__)
        self._packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._packed, self.tb)


def _rebuilt(packed: bytes, trace: str) -> BaseException:
    error: BaseException
    try:
        error = pickle.loads(packed)
        if not isinstance(error, BaseException):
            raise TypeError(f"it became {type(error).__name__}")
    except BaseException as refusal:
        error = pickle.UnpicklingError(f"what the task has raised cannot be unpickled: {refusal!r}")
    error.__cause__ = RemoteTraceback(trace)
    return error


def _packed_error(error: BaseException) -> parcel.Packed:
    """With its traceback as text.

    :raises Exception: it cannot be pickled.
    """
    packed = parcel.pack(error)
    if isinstance(packed, bytes):
        return parcel.pack(_Failure(error, packed))
    return parcel.pack(ExceptionWithTraceback(error, error.__traceback__))


def _surely_packed(error: BaseException) -> parcel.Packed:
    """The same, or at least what it says."""
    try:
        return _packed_error(error)
    except BaseException:
        return _packed_error(RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__))


def _packed_refusal(error: BaseException, result: Any) -> parcel.Packed:
    """That the result cannot be pickled: why, and the same as ``multiprocessing.Pool`` tells it."""
    told = MaybeEncodingError(error, result)
    # With tblib, which comes with dask, an error travels with what it came of: perhaps the very thing that cannot.
    error.__context__ = error.__cause__ = None
    try:
        return parcel.pack((_Failure(error, pickle.dumps(error, 5)), told))
    except BaseException:
        return parcel.pack((pickle.PicklingError(f"{type(error).__name__}: {told.exc}"), told))


def _places(content: parcel.Content, at: int, tasks: int) -> list[int]:
    """Where the parcels of a batch begin."""
    places = []
    for _ in range(tasks):
        (length,) = LENGTH.unpack_from(content, at)
        at += LENGTH.size
        places.append(at)
        at += length
    return places
