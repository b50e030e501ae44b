"""A backend for joblib: ``Parallel`` on workers that survive, with short ways for short tasks and large arrays.

    import joblib
    import multisocket.pool.joblib  # registers it

    with joblib.parallel_config("multisocket"):
        joblib.Parallel(n_jobs=4)(joblib.delayed(work)(item) for item in items)

The workers are kept for the next call with as many of them. As with joblib's own processes, functions of ``__main__``
and lambdas go by value, as they are at the time of the call, and what tasks run in parallel themselves runs in threads.
Unlike there, large arrays always go through shared memory, and are the task's own to write to: ``max_nbytes``,
``mmap_mode`` and ``temp_folder`` have nothing to do. An array that is an argument of many tasks is copied twice in all.
A worker that dies fails the call (:class:`WorkerDied`), and the next one works.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from types import FunctionType
from typing import Any

import joblib
from joblib.parallel import FallbackToBackend, ParallelBackendBase, SequentialBackend

from ..late_future import LateFuture
from . import parcel
from .executor import Executor, _Call
from .forms import ONE, OUTCOME, STAR
from .functions import _BY_NAME, Function, Functions
from .joblib_worker import prepare
from .repeated import Repeated
from .stored import Stored

NAME = "multisocket"
"""Of the backend."""

BATCH_SECONDS = 0.02
"""How long a batch shall take. Giving it out costs about a hundredth of that."""

_MOST_TASKS = 1024
# A batch is at most so many times as long as the one before: those that come may take longer.
_GROWTH = 8

_Item = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def register() -> None:
    """Makes the backend known to joblib under its name. Importing this module does it."""
    joblib.register_parallel_backend(NAME, Backend)


# --- the workers, which are kept between calls ---


@dataclass(frozen=True)
class _Kind:
    """What workers are like."""

    number: int
    method: str
    retries: int
    threads: int | None
    nesting_level: int


class _Kept:
    """Workers that calls use, and those that have done the last one.

    Each call has its own as long as it runs. Otherwise it might wait for another one that waits for it: the input of
    a call may be the results of another, and in the thread that hears outcomes, further input is asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: tuple[_Kind, Executor] | None = None
        self._busy: list[Executor] = []
        self._ending: list[Executor] = []

    def take(self, kind: _Kind, make: Callable[[], Executor]) -> Executor:
        """Workers of that kind. Those that are idle, and of another one, end."""
        with self._lock:
            idle, self._idle = self._idle, None
            fits = idle is not None and idle[0] == kind and _is_well(idle[1])
            executor = idle[1] if idle is not None and fits else make()
            self._busy.append(executor)
            if idle is not None and not fits:
                self._let_end(idle[1])
        return executor

    def give_back(self, kind: _Kind, executor: Executor) -> None:
        """They have done all that they were to do."""
        with self._lock:
            if executor not in self._busy:
                return
            self._busy.remove(executor)
            if self._idle is not None:
                self._let_end(self._idle[1])
            self._idle = kind, executor

    def end(self, executor: Executor) -> None:
        """They have something left to do, and shall not do it."""
        with self._lock:
            if executor in self._busy:
                self._busy.remove(executor)
        executor.terminate_workers()

    def end_all(self) -> None:
        """Ends all workers."""
        with self._lock:
            executors = self._busy + self._ending + ([] if self._idle is None else [self._idle[1]])
            self._idle, self._busy, self._ending = None, [], []
        for executor in executors:
            executor.terminate_workers()

    def _let_end(self, executor: Executor) -> None:
        self._ending = [one for one in self._ending if not one._crew.is_over]
        self._ending.append(executor)
        executor.shutdown(wait=False)


class _Workers(Executor):
    _needs_main = False  # what is in it goes by value


def _is_well(executor: Executor) -> bool:
    return not executor._crew.is_closing and executor._crew.broken is None


_kept = _Kept()


def _forget_kept() -> None:
    global _kept
    _kept = _Kept()


os.register_at_fork(after_in_child=_forget_kept)


def shutdown() -> None:
    """Ends the workers that are kept for the next call. Calls that use them now fail."""
    _kept.end_all()


# --- the backend ---


class Backend(ParallelBackendBase):  # type: ignore[misc]
    """What joblib talks to.

    :param context: how workers are started: of ``multiprocessing``, or the name of a start method; None: its default,
        or what joblib is told by JOBLIB_START_METHOD.
    :param retries: how often a batch of tasks is done again whose worker died.
    :raises ValueError: there is no such start method.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        context: BaseContext | str | None = None,
        retries: int = 0,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._context = multiprocessing.get_context(context) if isinstance(context, str) else context
        self._retries = retries
        self._kind: _Kind | None = None
        self._executor: Executor | None = None
        self._call = _CallState()
        self._options: dict[str, Any] = {}

    # --- a call begins, and ends ---

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks can run at once."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or n_jobs == 1:
            return 1
        refusal = self._refusal()
        if refusal:
            warnings.warn(f"{refusal}: n_jobs is 1", stacklevel=3)
            return 1
        return max(joblib.cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def _refusal(self) -> str:
        """Why no processes can be started here; nothing: they can."""
        if multiprocessing.current_process().daemon:
            return "a daemonic process can have no workers"
        if not self.in_main_thread() and self.nesting_level:
            return "workers cannot be started by threads of a parallel call"
        return ""

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """A call, or a block of calls, begins. How many tasks can run at once."""
        number = self.effective_n_jobs(n_jobs)
        if number == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self._executor is not None:
            # All calls within a parallel_config have the same backend, and this one is busy with another call.
            raise FallbackToBackend(self._another())
        context = self._context or options.get("context") or multiprocessing.get_context()
        kind = _Kind(
            number, context.get_start_method(), self._retries, self.inner_max_num_threads, self.nesting_level or 0
        )
        self.parallel = parallel
        self._options = options
        self._executor = _kept.take(kind, lambda: self._make(number, context))
        self._kind = kind
        return number

    def _another(self) -> Backend:
        return Backend(self.nesting_level, self.inner_max_num_threads, context=self._context, retries=self._retries)

    def start_call(self) -> None:
        """A call begins."""
        self._call = _CallState()

    def _make(self, number: int, context: BaseContext) -> Executor:
        threads = self.inner_max_num_threads or max(joblib.cpu_count() // number, 1)
        environment = dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(threads))
        # What is set already is told as well: a fork server has the environment of the time when it was started.
        is_set = {} if self.inner_max_num_threads else {n: os.environ[n] for n in environment if n in os.environ}
        nested, _ = self.get_nested_backend()
        return _Workers(
            number,
            context,
            initializer=prepare,
            initargs=(environment | is_set, threads if len(is_set) < len(environment) else None, pickle.dumps(nested)),
            retries=self._retries,
        )

    def terminate(self) -> None:
        """The call, or the block of calls, is over."""
        executor = self._leave_call()
        if executor is not None and self._kind is not None:
            _kept.give_back(self._kind, executor)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: what it has not done shall not be done."""
        executor = self._leave_call()
        if executor is not None:
            _kept.end(executor)
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel, **self._options)

    def _leave_call(self) -> Executor | None:
        # joblib's objects refer to each other, and to this. What it holds would stay until these cycles are found.
        self._call.forget()
        executor, self._executor = self._executor, None
        return executor

    # --- tasks ---

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Has a batch done.

        :param func: the batch.
        :param callback: called with the Future.
        """
        future: LateFuture[Any] = LateFuture()
        # Much of this happens in a thread that nobody hears: errors are told by the Future.
        try:
            self._give(func.items, future)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(self._call.calling(callback, self.parallel))
        return future

    apply_async = submit  # for joblib before 1.5

    def _give(self, items: list[_Item], future: LateFuture[Any]) -> None:
        if self._executor is None:
            raise RuntimeError("this call has ended: was the generator of its results dropped?")
        crew, call = self._executor._crew, self._call
        first = items[0][0]
        if type(first) is FunctionType and all(one is first and not kwargs for one, _, kwargs in items):
            known = call.function(first, crew.functions)
            task = _Timed(known, STAR, _packed([args for _, args, _ in items], call.arrays), future)
        else:
            task = _Timed(crew.functions.of(_call_each), ONE, _packed(items, call.arrays), future)
        task.call, task.size, task.used = call, len(items), call.arrays.take_used()
        crew.add(task)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch."""
        return out.result()

    def compute_batch_size(self) -> int:
        """How many tasks the next batch shall have."""
        return self._call.batch_size()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Around the looks for results. These are 10 ms apart, too long for short tasks, so it waits here, if all
        results are wanted anyway."""
        parallel = self.parallel
        if parallel.timeout is None and not parallel.return_generator:
            self._call.wait(parallel)
        yield


class _CallState:
    """What is known of a call of Parallel: how long its tasks take, and its functions."""

    def __init__(self) -> None:
        self.arrays = Repeated()
        self._functions: dict[int, tuple[Any, Function]] = {}
        self._is_over = threading.Event()
        # Of the last batches: the older, the less they count.
        self._seconds = 0.0
        self._tasks = 0.0
        self._size = 1

    def function(self, function: FunctionType, functions: Functions) -> Function:
        """What workers are told of it: its name; or all of it, if what it refers to may have changed since their
        start."""
        known = self._functions.get(id(function))
        if known is None:
            found = functions.of(function) if _is_of_module(function) else _by_value(function, functions)
            # The function as well: as long as it lives, none other has its id.
            known = self._functions[id(function)] = function, found
        return known[1]

    def forget(self) -> None:
        """The call is over."""
        self._functions.clear()
        self.arrays.close()

    def learn(self, seconds: float, size: int) -> None:
        """A batch of so many tasks has taken so long."""
        self._seconds = self._seconds / 2 + max(seconds, 1e-6)
        self._tasks = self._tasks / 2 + size
        wanted = int(BATCH_SECONDS * self._tasks / self._seconds)
        self._size = max(1, min(wanted, max(self._size, _GROWTH * size), _MOST_TASKS))

    def batch_size(self) -> int:
        """How many tasks the next batch shall have."""
        return self._size

    def calling(self, callback: Callable[[Any], Any], parallel: Any) -> Callable[[Future[Any]], None]:
        """A callback of a Future that also sees whether the call is over."""

        def call(future: Future[Any]) -> None:
            callback(future)
            if _is_over(parallel):
                self._is_over.set()

        return call

    def wait(self, parallel: Any) -> None:
        """Until all is done, or something has failed."""
        while not _is_over(parallel):
            self._is_over.wait(0.1)


def _is_over(parallel: Any) -> bool:
    return parallel._aborting or not parallel._wait_retrieval()


class _Timed(_Call):
    """The task of a batch, from which the call learns how long tasks take."""

    __slots__ = ("call", "size", "used")

    call: _CallState
    size: int
    used: list[Stored]

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """See :class:`Task`."""
        microseconds = OUTCOME.unpack_from(content)[4]
        self.call.learn(microseconds / 1e6, self.size)
        super().outcome(what, flags, content)


def _by_value(function: FunctionType, functions: Functions) -> Function:
    return functions._remember(_BY_NAME + _cloudpickle().dumps(function, 5), function, is_by_value=True)


def _is_of_module(function: FunctionType) -> bool:
    """Whether workers find the same function by its name."""
    module = sys.modules.get(function.__module__)
    if module is None or function.__module__ == "__main__":
        return False
    return getattr(module, function.__qualname__, None) is function


def _cloudpickle() -> Any:
    """joblib comes with it: as a dependency, or before 1.6 as a part of itself."""
    try:
        import cloudpickle
    except ImportError:
        from joblib.externals import cloudpickle
    return cloudpickle


@functools.cache
def _pickler() -> Any:
    class Pickler(_cloudpickle().Pickler):  # type: ignore[misc]
        """cloudpickle's, but for large arrays that come again and again."""

        arrays: Repeated

        def reducer_override(self, obj: Any) -> Any:
            """See pickle."""
            return self.arrays.reduced(obj) or super().reducer_override(obj)

    return Pickler


def _packed(obj: Any, arrays: Repeated) -> parcel.Packed:
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the pickle."""
        raw = buffer.raw()
        if raw.nbytes < parcel._LARGE_BUFFER:
            return True
        buffers.append(raw)
        return False

    out = io.BytesIO()
    pickler = _pickler()(out, 5, buffer_callback=keep)
    pickler.arrays = arrays
    pickler.dump(obj)
    body = out.getvalue()
    if not buffers and len(body) < parcel.LARGE:
        return body
    return [memoryview(body), *buffers]


# --- in workers ---


def _call_each(items: list[_Item]) -> list[Any]:
    return [function(*args, **kwargs) for function, args, kwargs in items]


register()
