"""Executor: ``concurrent.futures.ProcessPoolExecutor``, on workers that survive."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, InvalidStateError
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from ..errors import Closed
from ..late_future import LateFuture
from . import parcel
from .crew import Crew
from .forms import STAR
from .functions import Function
from .pool import check_numbers, context_of, processors
from .tasks import Payload, Task, Valued, packed_call

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")


class _Call(Valued):
    """The task of a Future."""

    __slots__ = ("future", "is_started")

    def __init__(self, function: Function, kind: int, payload: Payload, future: LateFuture[Any]) -> None:
        super().__init__(function, kind, payload)
        self.future = future
        self.is_started = False

    def start(self) -> bool:
        """See :class:`Task`."""
        if not self.is_started:
            self.is_started = self.future.set_running_or_notify_cancel()
        return self.is_started

    def finish(self, value: Any) -> None:
        """See :class:`Valued`."""
        self.future.finish(value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        # One that was cancelled is told so: else those who wait for it would not hear of it.
        if self.start():
            with contextlib.suppress(InvalidStateError):
                self.future.set_exception(error)


class Executor(BaseExecutor):
    """Worker processes that take tasks from one Socket: a drop-in for ``concurrent.futures.ProcessPoolExecutor``.

    A worker that dies fails only the task that it was running (``WorkerDied``, a ``BrokenExecutor``), and is replaced;
    the executor goes on.

    :param max_workers: how many workers; None: as many as there are processors.
    :param mp_context: of ``multiprocessing``, or the name of a start method; None: its default.
    :param initializer: called with ``initargs`` in each worker before its first task. If it raises, all tasks fail
        (``InitializerFailed``).
    :param max_tasks_per_child: tasks after which a worker is replaced; None: never.
    :param retries: how often a task is done again whose worker died.
    :param task_timeout: seconds after which the worker of a task is killed, and the task fails (``TaskTimeout``); None:
        never. Of :meth:`map` with a chunksize, a task is a chunk. The start of a worker does not count, nor does the
        time in which it imports what the function and its arguments need; for that it has a minute, or as long again.
    :raises ValueError: a number is out of range.
    :raises OutOfSharedMemory: no memory for it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
        task_timeout: float | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = processors()
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None and not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        check_numbers(max_workers, max_tasks_per_child, retries, task_timeout)
        self._max_workers = max_workers  # others look at it, as at ProcessPoolExecutor's: dask, for one
        self._crew = Crew(
            max_workers,
            context=context_of(mp_context),
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=max_tasks_per_child,
            retries=retries,
            task_timeout=task_timeout,
            finishes_at_exit=True,
            needs_main=self._needs_main,
        )
        self._finalizer = weakref.finalize(self, self._crew.close)
        self._finalizer.atexit = False

    _needs_main = True

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Calls a function in a worker.

        :raises RuntimeError: after :meth:`shutdown`.
        :raises InitializerFailed: workers cannot start.
        """
        try:
            kind, payload = packed_call(args, kwargs)
        except Exception as error:  # told by the Future
            return _failed(error)
        return self._submit(fn, kind, payload)

    def _submit(self, fn: Callable[..., Any], kind: int, payload: parcel.Packed) -> Future[Any]:
        future: LateFuture[Any] = LateFuture()
        try:
            function = self._crew.functions.of(fn)
        except Exception as error:
            return _failed(error)
        try:
            self._crew.add(_Call(function, kind, payload, future))
        except Closed:
            raise RuntimeError("cannot schedule new futures after shutdown") from None
        return future

    def _check_open(self) -> None:
        if self._crew.broken is not None:
            raise self._crew.broken.with_traceback(None)  # it is raised often: its frames would become ever more
        if self._crew.is_closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    @overload  # type: ignore[override]  # the base's takes any function of any arguments
    def map(
        self,
        fn: Callable[[A], T],
        first: Iterable[A],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B], T],
        first: Iterable[A],
        second: Iterable[B],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B, C], T],
        first: Iterable[A],
        second: Iterable[B],
        third: Iterable[C],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        fourth: Iterable[Any],
        /,
        *more: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Calls a function with items of all iterables; gives the results in the same order.

        :param timeout: seconds from this call until the last result.
        :param chunksize: items that are a task together.
        :param buffersize: tasks whose results have not been taken, at the most; None: all are submitted at once.
        :raises TimeoutError: (while iterating) the time has passed.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        self._check_open()
        end = None if timeout is None else time.monotonic() + timeout
        futures = self._submitted(fn, zip(*iterables, strict=False), chunksize)
        waiting = deque(futures if buffersize is None else itertools.islice(futures, buffersize))
        results = _results(waiting, futures, end)
        return _one_by_one(results) if chunksize > 1 else results

    def _submitted(self, fn: Callable[..., Any], calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[Future[Any]]:
        if size == 1:
            for args in calls:
                yield self.submit(fn, *args)
            return
        while chunk := list(itertools.islice(calls, size)):
            try:
                packed = parcel.pack(chunk)
            except Exception as error:
                yield _failed(error)
                continue
            yield self._submit(fn, STAR, packed)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more tasks are taken; workers end when all are done.

        :param wait: until then.
        :param cancel_futures: those that no worker was given yet.
        """
        if cancel_futures:
            _cancel(self._crew.drop_backlog())
        self._crew.close()
        if wait:
            self._crew.join()

    def terminate_workers(self) -> None:
        """Ends the workers at once, by SIGTERM; those that have not ended a second later, by SIGKILL.

        What is not done fails (``Terminated``), and no more tasks are taken. Like ``kill_workers``, it is there on all
        versions of Python, and waits until the workers have ended.
        """
        self._crew.terminate()
        self._crew.join()

    def kill_workers(self) -> None:
        """Ends the workers at once, by SIGKILL: they cannot clean up. See :meth:`terminate_workers`."""
        self._crew.terminate(kill=True)
        self._crew.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # Who presses Ctrl-C does not want to wait for all that was submitted.
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.terminate_workers()
        else:
            self.shutdown()
        return None

    def __repr__(self) -> str:
        state = "closed" if self._crew.is_closing else "open"
        return f"<Executor of {self._max_workers} workers, {state}>"

    @property
    def workers(self) -> list[BaseProcess]:
        """The worker processes that run now."""
        return self._crew.workers

    def stats(self) -> dict[str, float]:
        """See :meth:`multisocket.pool.Pool.stats`."""
        return self._crew.stats()


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    future.set_exception(error)
    return future


def _cancel(tasks: Iterable[Task]) -> None:
    for task in tasks:
        if isinstance(task, _Call) and task.future.cancel():
            task.future.set_running_or_notify_cancel()


def _results(waiting: deque[Future[Any]], futures: Iterator[Future[Any]], end: float | None) -> Iterator[Any]:
    """The results in order, while further tasks are submitted; the rest is cancelled when nobody wants it."""
    try:
        while waiting:
            # Not by way of a name, which would keep it while somebody else has it.
            yield _next_result(waiting, futures, end)
    finally:
        for future in waiting:
            future.cancel()


def _next_result(waiting: deque[Future[Any]], futures: Iterator[Future[Any]], end: float | None) -> Any:
    future = waiting.popleft()
    try:
        result = future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        del future  # an error's traceback would keep it, and it the error
    waiting.extend(itertools.islice(futures, 1))
    return result


def _one_by_one(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
