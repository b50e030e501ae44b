"""A lane's work done by somebody else's executor: that of a dask cluster, for example.

Items go there in batches, as bytes, a Future for each batch: few at a time for each worker that the stage is to have,
so that memory stays bounded here and work is spread there.

One thread for each lane gives out batches and hears of them. So the executor is never called with a lock of ours, nor
from a callback of its own: executors have locks, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from inspect import isgenerator
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from queue import SimpleQueue
from typing import Any

from . import parcel
from .errors import InitializerFailed, Terminated
from .forms import DONE, ENDED, OUTCOME, PART, RAISED
from .functions import Function
from .stage import AnyStage
from .tasks import Source, Task

_BATCH_SECONDS = 0.1
_MOST_TASKS = 1000
# Dask complains of more than 10 MB.
_MOST_BYTES = 8 << 20
# Batches for each worker: the next one lies there when it is done with one.
_BATCHES = 2
# Seconds that an executor has to take in a batch, or to cancel what it has, when a run ends.
_END_SECONDS = 10.0

Outcome = tuple[int, float, bytes]
"""What, seconds, parcel."""

_Batch = Future[list[list[Outcome]]]


class Borrowed:
    """Gives a lane's items to an executor.

    :param executor: whose workers must be able to import, or unpickle, the stage's function.
    :param stage: what is done.
    """

    def __init__(self, executor: Executor, stage: AnyStage) -> None:
        self._executor = executor
        self._stage = stage
        self._function = _portable(stage.function)
        self._token = os.urandom(8).hex()
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self._backlog: deque[Task] = deque()
        # Of batches that have failed as a whole: each by itself, for perhaps it was only one of them.
        self._alone: deque[Task] = deque()
        # What the thread hears: a batch is done; True: there is something to give out; None: the end.
        self._news: SimpleQueue[_Batch | bool | None] = SimpleQueue()
        self._given: dict[_Batch, list[Task]] = {}
        self._seconds: float | None = None
        self._done = 0
        self._busy = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="multisocket-borrowed", daemon=True)
        self._starting = threading.Lock()
        self._is_started = False

    def add(self, task: Task | Source) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""
        assert isinstance(task, Task)
        self._backlog.append(task)
        # Whoever is busy may have no outcome for long: nobody waits for that while others are idle.
        if len(self._given) < self._stage.workers or len(self._backlog) >= self.wanted(task.function):
            self.hurry()

    def add_again(self, task: Task) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""
        self._backlog.appendleft(task)
        self.hurry()

    def hurry(self) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""
        self._start()
        self._news.put(True)

    def _start(self) -> None:
        if self._is_started:
            return
        with self._starting:
            if not self._is_started:
                self._is_started = True
                self._thread.start()

    def wanted(self, function: Function) -> int:
        """See :class:`multisocket.pool.lane.Hands`."""
        if self._stage.batch is not None:
            return self._stage.batch
        if self._seconds is None:
            return 1
        return max(1, min(_MOST_TASKS, int(_BATCH_SECONDS / self._seconds)))

    # --- the thread ---

    def _run(self) -> None:
        try:
            while (news := self._news.get()) is not None:
                if isinstance(news, Future):
                    self._hear(news)
                self._give_out()
        finally:
            for future in self._given:
                with contextlib.suppress(Exception):
                    future.cancel()
            self._over.set()

    def _give_out(self) -> None:
        while len(self._given) < _BATCHES * self._stage.workers and (batch := self._next_batch()):
            payloads = self._payloads(batch)
            if not payloads:
                continue
            try:
                future = self._submitted(payloads)
            except Exception as error:
                ended = Terminated(f"the executor takes no more: {type(error).__name__}: {error}")
                ended.__cause__ = error
                self._fail(batch, ended)
                continue
            self._given[future] = batch
            future.add_done_callback(self._news.put)

    def _payloads(self, batch: list[Task]) -> list[bytes]:
        """As bytes; those that cannot become that fail, and are taken out."""
        payloads = []
        for task in list(batch):
            try:
                payloads.append(_in_one_piece(task.payload))
            except Exception as error:
                batch.remove(task)
                task.fail(error)
        return payloads

    def _submitted(self, payloads: list[bytes]) -> _Batch:
        stage = self._stage
        # With its number no two calls are the same: dask would take them for one.
        return self._executor.submit(
            run_batch, (self._token, next(self._numbers)), self._function, stage.initializer, stage.initargs, payloads
        )

    def _next_batch(self) -> list[Task]:
        if self._alone:
            return [self._alone.popleft()]
        backlog = self._backlog
        batch: list[Task] = []
        if not backlog:
            return batch
        most = min(self.wanted(backlog[0].function), -(-len(backlog) // self._stage.workers))
        size = 0
        while backlog and len(batch) < most:
            size += parcel.size_of(backlog[0].payload)
            if batch and size > _MOST_BYTES:
                break
            batch.append(backlog.popleft())
        return batch

    def _hear(self, future: _Batch) -> None:
        batch = self._given.pop(future)
        error = _error_of(future)
        if error is None:
            for task, its in zip(batch, future.result(), strict=True):
                self._tell(task, its)
        elif len(batch) > 1 and not isinstance(error, InitializerFailed):
            self._alone.extend(batch)
        else:
            self._fail(batch, error)

    def _tell(self, task: Task, outcomes: list[Outcome]) -> None:
        seconds = sum(seconds for _, seconds, _ in outcomes)
        self._done += 1
        self._busy += seconds
        known = self._seconds
        self._seconds = max(seconds, 1e-6) if known is None else 0.8 * known + 0.2 * max(seconds, 1e-6)
        for what, _, body in outcomes:
            task.outcome(what, 0, OUTCOME.pack(0, 0, what, 0, 0, 0) + body)

    def _fail(self, batch: list[Task], error: BaseException) -> None:
        for task in batch:
            task.fail(error)

    # --- what it has in common with a crew ---

    def read(self, slot: int, parts: int = 1) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""

    def running(self, slot: int) -> Task | None:
        """See :class:`multisocket.pool.lane.Hands`: not known here."""
        return None

    def kill(self, slot: int, task: Task) -> bool:
        """See :class:`multisocket.pool.lane.Hands`."""
        return False

    def totals(self) -> tuple[int, float]:
        """See :class:`multisocket.pool.lane.Hands`."""
        return self._done, self._busy

    def terminate(self) -> None:
        """Cancels what has not begun. The executor lives on: it is somebody else's."""
        if os.getpid() == self._pid:
            self._start()
            self._news.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """See :class:`multisocket.pool.lane.Hands`."""
        if threading.current_thread() is self._thread:
            return False
        return self._over.wait(_END_SECONDS if timeout is None else timeout)


def _error_of(future: _Batch) -> BaseException | None:
    # Not raised by result(): its traceback would keep alive what is known here of the future.
    try:
        return future.exception()
    except CancelledError as error:
        return error


class _Portable:
    """A function that goes to other processes by value."""

    def __init__(self, function: Callable[[Any], Any], body: bytes) -> None:
        self._function = function
        self._body = body

    def __call__(self, item: Any) -> Any:
        return self._function(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._body,)


def _portable(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Itself, if pickle can do it, or if nobody can: executors with threads need not pickle it."""
    try:
        pickle.dumps(function, 5)
        return function
    except Exception:
        pass
    try:
        import cloudpickle

        return _Portable(function, cloudpickle.dumps(function, 5))
    except Exception:
        return function


def _in_one_piece(payload: parcel.Packed | memoryview) -> bytes:
    if not isinstance(payload, bytes):
        payload = _dumps_whole(parcel.opened(payload))
    if b"__main__" not in payload or not parcel.can_pack_by_value():
        return payload
    # Workers elsewhere do not know this __main__.
    packed = parcel.pack_by_value(parcel.opened(payload))
    return packed if isinstance(packed, bytes) else bytes(packed[0])


def _dumps_whole(obj: Any) -> bytes:
    try:
        return pickle.dumps(obj, 5)
    except Exception as error:
        if not parcel.can_pack_by_value():
            raise error
    import cloudpickle

    whole: bytes = cloudpickle.dumps(obj, 5)
    return whole


# --- where the work is done ---

_initialized: set[str] = set()
_initializing = threading.Lock()


def run_batch(
    token: tuple[str, int],
    function: Callable[[Any], Any],
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    payloads: list[bytes],
) -> list[list[Outcome]]:
    """Applies a stage's function to items.

    :param token: of the stage's run: its initializer is called once for it in each process; and the batch's number.
    :raises InitializerFailed: it has raised.
    """
    if initializer is not None:
        _initialize(token[0], initializer, initargs)
    return [list(_outcomes(function, payload)) for payload in payloads]


def _initialize(token: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    with _initializing:  # other threads of a worker wait until it is done
        if token in _initialized:
            return
        try:
            initializer(*initargs)
        except Exception as error:
            raise InitializerFailed(f"the initializer of a worker raised {type(error).__name__}: {error}") from error
        _initialized.add(token)


def _outcomes(function: Callable[[Any], Any], payload: bytes) -> Iterator[Outcome]:
    began = time.monotonic()
    try:
        result = function(pickle.loads(payload))
        if not isgenerator(result):
            yield DONE, time.monotonic() - began, _dumps(result)
            return
        for value in result:
            yield PART, 0.0, _dumps(value)
        yield ENDED, time.monotonic() - began, b""
    except Exception as error:
        yield RAISED, time.monotonic() - began, _dumps_error(error)


def _dumps(value: Any) -> bytes:
    packed = parcel.pack(value)
    return packed if isinstance(packed, bytes) else _dumps_whole(value)


def _dumps_error(error: Exception) -> bytes:
    try:
        return _dumps(ExceptionWithTraceback(error, error.__traceback__))
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
