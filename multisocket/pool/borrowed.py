"""A lane's work done by somebody else's executor: that of a dask cluster, for example.

Items go there in batches, as bytes, a Future for each batch: few at a time for each worker that the stage is to have,
so that memory stays bounded here and work is spread there.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from inspect import isgenerator
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any

from . import parcel
from .errors import Terminated
from .forms import DONE, ENDED, OUTCOME, PART, RAISED
from .functions import Function
from .stage import Stage
from .tasks import Source, Task

_BATCH_SECONDS = 0.1
_MOST_TASKS = 1000
_MOST_BYTES = 16 << 20
# Batches for each worker: the next one lies there when it is done with one.
_BATCHES = 2

Outcome = tuple[int, float, bytes]
"""What, seconds, parcel."""


class Borrowed:
    """Gives a lane's items to an executor.

    :param executor: whose workers must be able to import, or unpickle, the stage's function.
    :param stage: what is done.
    """

    def __init__(self, executor: Executor, stage: Stage) -> None:
        self._executor = executor
        self._stage = stage
        self._token = secrets.token_hex(8)
        # Guards all that follows. No task's method is called with it.
        self._lock = threading.RLock()
        self._backlog: deque[Task] = deque()
        self._given: dict[Future[list[list[Outcome]]], list[Task]] = {}
        self._seconds: float | None = None
        self._done = 0
        self._busy = 0.0
        self._is_over = False

    def add(self, task: Task | Source) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""
        assert isinstance(task, Task)
        self._backlog.append(task)
        if not self._given or len(self._backlog) >= self.wanted(task.function):
            self.hurry()

    def hurry(self) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""
        while (batch := self._next_batch()) is not None:
            payloads = [_in_one_piece(task.payload) for task in batch]
            stage = self._stage
            try:
                future = self._executor.submit(
                    run_batch, self._token, stage.function, stage.initializer, stage.initargs, payloads
                )
            except Exception as error:
                self._fail(batch, error)
                continue
            with self._lock:
                self._given[future] = batch
            future.add_done_callback(self._heard)

    def _next_batch(self) -> list[Task] | None:
        with self._lock:
            if self._is_over or not self._backlog or len(self._given) >= _BATCHES * self._stage.workers:
                return None
            batch: list[Task] = []
            size = 0
            most = min(self.wanted(self._backlog[0].function), -(-len(self._backlog) // self._stage.workers))
            while self._backlog and len(batch) < most and size < _MOST_BYTES:
                task = self._backlog.popleft()
                batch.append(task)
                size += parcel.size_of(task.payload)
            return batch

    def wanted(self, function: Function) -> int:
        """See :class:`multisocket.pool.lane.Hands`."""
        if self._stage.batch is not None:
            return self._stage.batch
        if self._seconds is None:
            return 1
        return max(1, min(_MOST_TASKS, int(_BATCH_SECONDS / self._seconds)))

    def _heard(self, future: Future[list[list[Outcome]]]) -> None:
        """In a thread of the executor's."""
        with self._lock:
            batch = self._given.pop(future)
            if self._is_over:
                return
        try:
            outcomes = future.result()
        except BaseException as error:  # cancelled, or its worker died
            self._fail(batch, error)
        else:
            for task, its in zip(batch, outcomes, strict=True):
                self._tell(task, its)
        self.hurry()

    def _tell(self, task: Task, outcomes: list[Outcome]) -> None:
        seconds = sum(seconds for _, seconds, _ in outcomes)
        with self._lock:
            self._done += 1
            self._busy += seconds
            known = self._seconds
            self._seconds = max(seconds, 1e-6) if known is None else 0.8 * known + 0.2 * seconds
        for what, _, body in outcomes:
            task.outcome(what, 0, OUTCOME.pack(0, 0, what, 0, 0, 0) + body)

    def _fail(self, batch: list[Task], error: BaseException) -> None:
        for task in batch:
            task.fail(error)

    def read(self, slot: int, parts: int = 1) -> None:
        """See :class:`multisocket.pool.lane.Hands`."""

    def totals(self) -> tuple[int, float]:
        """See :class:`multisocket.pool.lane.Hands`."""
        return self._done, self._busy

    def terminate(self) -> None:
        """Cancels what has not begun. The executor lives on: it is somebody else's."""
        with self._lock:
            self._is_over = True
            given, waiting = list(self._given), list(self._backlog)
            self._backlog.clear()
        for future in given:
            future.cancel()
        self._fail(waiting, Terminated("the pipeline was closed before this item was done"))

    def join(self, timeout: float | None = None) -> bool:
        """See :class:`multisocket.pool.lane.Hands`."""
        return True


def _in_one_piece(payload: parcel.Packed | memoryview) -> bytes:
    return payload if isinstance(payload, bytes) else pickle.dumps(parcel.opened(payload), 5)


# --- where the work is done ---

_initialized: set[str] = set()
_initializing = threading.Lock()


def run_batch(
    token: str,
    function: Callable[[Any], Any],
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    payloads: list[bytes],
) -> list[list[Outcome]]:
    """Applies a stage's function to items.

    :param token: of the stage's run: its initializer is called once for it in each process.
    """
    if initializer is not None:
        _initialize(token, initializer, initargs)
    return [list(_outcomes(function, payload)) for payload in payloads]


def _initialize(token: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    with _initializing:  # other threads of a worker wait until it is done
        if token in _initialized:
            return
        initializer(*initargs)
        _initialized.add(token)


def _outcomes(function: Callable[[Any], Any], payload: bytes) -> Any:
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
    return _in_one_piece(parcel.pack(value))


def _dumps_error(error: Exception) -> bytes:
    try:
        return _dumps(ExceptionWithTraceback(error, error.__traceback__))
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
