"""Pool: ``multiprocessing.Pool``, on workers that survive."""

from __future__ import annotations

import multiprocessing
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .crew import Crew
from .forms import MAP, STAR
from .results import (
    Apply,
    AsyncResult,
    ErrorCallback,
    IMapIterator,
    IMapOrderedIterator,
    IMapUnorderedIterator,
    Map,
    MapResult,
    as_items,
)
from .tasks import packed_call

if TYPE_CHECKING:
    from typing_extensions import Self

S = TypeVar("S")
T = TypeVar("T")

# Results of an imap that nobody has taken yet, for each worker.
_AHEAD = 512


class Pool:
    """Worker processes that take tasks from one Socket: a drop-in for ``multiprocessing.Pool``.

    A worker that dies, however, fails only the task that it was running (``WorkerDied``), and is replaced.

    :param processes: how many workers; None: as many as there are processors.
    :param initializer: called with ``initargs`` in each worker before its first task.
    :param maxtasksperchild: tasks after which a worker is replaced; None: never.
    :param context: of ``multiprocessing``, or the name of a start method; None: its default.
    :param retries: how often a task is done again whose worker died.
    :param task_timeout: seconds after which the worker of a task is killed, and the task fails (``TaskTimeout``); None:
        never. Of a map, a task is a chunk. The start of a worker does not count, nor does the time in which it imports
        what the function and its arguments need; for that it has a minute, or as long again.
    :raises ValueError: a number is out of range.
    :raises OutOfSharedMemory: no memory for it.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | str | None = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
    ) -> None:
        processes = processors() if processes is None else processes
        check_numbers(processes, maxtasksperchild, retries, task_timeout)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._crew = Crew(
            processes,
            context=context_of(context),
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=maxtasksperchild,
            retries=retries,
            task_timeout=task_timeout,
        )
        self._is_terminated = False
        self._finalizer = weakref.finalize(self, self._crew.terminate)
        try:
            self._crew.start()
        except BaseException:
            self.terminate()
            raise

    # --- one call ---

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> T:
        """Calls a function in a worker, and waits for the result. Errors: see :meth:`AsyncResult.get`."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> AsyncResult[T]:
        """Calls a function in a worker.

        :param callback: called with the result, in a thread of this process; it must return soon.
        :param error_callback: the same with the error.
        """
        self._check_running()
        result: AsyncResult[T] = AsyncResult(callback, error_callback)
        result._pool = self
        try:
            kind, payload = packed_call(tuple(args), dict(kwds))
            task = Apply(self._crew.functions.of(func), kind, payload, result)
        except Exception as error:  # what cannot be pickled is told where the result is waited for
            result._fail(error)
            return result
        self._crew.add(task)
        return result

    # --- many at once ---

    def map(self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None) -> list[T]:
        """Calls a function with each item; the results in the same order.

        :param chunksize: items that are a task together. None: it follows how long they take.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> MapResult[T]:
        """The same without waiting. Callbacks: see :meth:`apply_async`."""
        return self._map(func, MAP, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """Like :meth:`map`, of items that are the arguments of a call each."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> MapResult[T]:
        """The same without waiting. Callbacks: see :meth:`apply_async`."""
        return self._map(func, STAR, iterable, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., T],
        kind: int,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: ErrorCallback | None,
    ) -> MapResult[T]:
        self._check_running()
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize is 1 or more, or None, not {chunksize}")
        items: Sequence[Any] = iterable if isinstance(iterable, (tuple, range)) else list(iterable)
        result: MapResult[T] = MapResult(len(items), callback, error_callback)
        result._pool = self
        if not len(items):
            result._finish([])
            return result
        try:
            function = self._crew.functions.of(func)
        except Exception as error:
            result._fail(error)
            return result
        self._crew.add(Map(function, kind, items, chunksize, self._crew.processes, result))
        return result

    # --- one after the other ---

    def imap(self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1) -> IMapIterator[T]:
        """Calls a function with each item; gives the results one by one, in the same order.

        Items are read in a thread, only as far as results are taken: the source may be endless.

        :param chunksize: items that are a task together.
        """
        return self._imap(IMapOrderedIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1) -> IMapIterator[T]:
        """Like :meth:`imap`, in the order in which results come."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(
        self, kind_of: type[IMapIterator[T]], func: Callable[[S], T], iterable: Iterable[S], chunksize: int
    ) -> IMapIterator[T]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        kind, items = as_items(iterable, chunksize)
        iterator = kind_of(self._crew, _AHEAD * self._crew.processes, chunksize > 1)
        iterator._pool = self
        function = self._crew.functions.of(func)
        iterator._start(function, items, kind)
        return iterator

    # --- the end ---

    def close(self) -> None:
        """No more tasks are taken; workers end when all are done."""
        self._crew.close()

    def terminate(self) -> None:
        """Ends the workers at once. What is not done fails (``Terminated``)."""
        self._is_terminated = True
        self._crew.terminate()
        self._crew.join()

    def join(self) -> None:
        """Waits until the workers have ended.

        :raises ValueError: the pool was neither closed nor terminated.
        """
        if not self._crew.is_closing:
            raise ValueError("Pool is still running")
        self._crew.join()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None and not crew.is_closing and crew.is_mine:
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> Any:
        raise NotImplementedError("a pool cannot be given to another process: make one there")

    def __repr__(self) -> str:
        state = "TERMINATE" if self._is_terminated else "CLOSE" if self._crew.is_closing else "RUN"
        return f"<{type(self).__module__}.{type(self).__qualname__} state={state} pool_size={self._crew.processes}>"

    def _check_running(self) -> None:
        if self._crew.is_closing:
            raise ValueError("Pool not running")

    # --- what is going on ---

    @property
    def workers(self) -> list[BaseProcess]:
        """The worker processes that run now."""
        return self._crew.workers

    def stats(self) -> dict[str, float]:
        """Counters: ``workers``, tasks ``waiting``, ``given`` to workers and ``done``, and the seconds that these took
        (``busy``)."""
        return self._crew.stats()


def context_of(context: BaseContext | str | None) -> BaseContext:
    """That of ``multiprocessing`` itself, or of the start method with this name.

    :raises ValueError: there is no such start method.
    """
    return multiprocessing.get_context(context) if context is None or isinstance(context, str) else context


def check_numbers(
    processes: int, max_tasks: int | None, retries: int, task_timeout: float | None, *, name: str = "processes"
) -> None:
    """Of what a pool is made with.

    :raises ValueError: one is out of range.
    """
    if not isinstance(processes, int):
        raise TypeError(f"Number of {name} must be an integer, not {processes!r}")
    if processes < 1:
        raise ValueError(f"Number of {name} must be at least 1, not {processes}")
    if max_tasks is not None and (not isinstance(max_tasks, int) or max_tasks <= 0):
        raise ValueError(f"tasks of a worker must be a positive int or None, not {max_tasks!r}")
    if retries < 0:
        raise ValueError(f"retries are 0 or more, not {retries}")
    if task_timeout is not None and not task_timeout > 0:
        raise ValueError(f"task_timeout is more than 0 seconds, or None, not {task_timeout}")


def processors() -> int:
    """That this process may use."""
    count: int | None = getattr(os, "process_cpu_count", lambda: None)()  # from Python 3.13 on
    return count or len(os.sched_getaffinity(0))
