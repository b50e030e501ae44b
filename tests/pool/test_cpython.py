"""CPython's own tests of its pools, run on ours: those that the running interpreter brings along in its ``test``
package. Nothing of them is copied. Their classes are subclassed, with our classes in the place of CPython's.
Interpreters that were built without (a part of) that package skip (that part).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import multiprocessing
import multiprocessing.pool
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import process as futures_process
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from conftest import DEADLINE, START_METHODS, Processes, children, names_in_shm, wait_until
from multisocket import names
from multisocket.background import background
from multisocket.pool import Executor, InitializerFailed, Pool, Terminated, WorkerDied

methods = pytest.mark.parametrize("method", START_METHODS)

# What is left out, and why. Where a test has a point beyond that, there is one of our own for it below.
LEFT_OUT = {
    "_TestPool.test_resource_warning": "sets a private attribute: see test_unclosed_pool_warns",
    "ProcessPoolExecutorTest.test_killed_child": "expects all to fail: see test_killed_child_fails_only_its_task",
    "ProcessPoolExecutorTest.test_saturation": "its tasks cannot be pickled, but workers start: see test_saturation",
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": "ours needs no other start method",
    "ProcessPoolExecutorTest.test_python_finalization_error": "replaces what starts CPython's threads",
    "ProcessPoolExecutorTest.test_broken_process_pool_traceback": "waits for ever for tasks of workers that live on",
    "ProcessPoolExecutorTest.test_traceback_when_child_process_terminates_abruptly": (
        "looks into a traceback for what WorkerDied says itself: see test_killed_child_fails_only_its_task"
    ),
    "ProcessPoolExecutorTest.test_shutdown_no_wait_max_tasks_gh119592": (
        "expects errors where ours gives results: see test_dropped_executor_does_all_it_was_given"
    ),
    "ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967": "likewise",
    "ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit": "sets a private attribute",
    "ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool": "replaces what starts CPython's processes",
    "ProcessPoolExecutorTest.test_terminate_workers": "replaces a private method: see test_terminating_and_killing",
    "ProcessPoolExecutorTest.test_kill_workers": "likewise",
    "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op": "calls that private method",
    "ProcessPoolShutdownTest.test_processes_terminate": "as test_saturation: see test_processes_terminate",
    "ProcessPoolShutdownTest.test_hang_gh83386": "skips processes, as these hang: see test_exit_with_running_futures",
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces CPython's wake-up pipe",
    # Whole classes that are not made below:
    # - TestPoolNotLeakOnFailure: its processes are no processes. See test_no_process_stays_when_one_cannot_start.
    # - FailingInitializerResourcesTest: runs a test of CPython's executor, to look at its semaphores. We have none.
    # - TestStdinBadfiledescriptor: does not look at what comes out. See test_pool_in_worker and test_pool_in_child.
    # - what tests threads or Futures alone, or pools of a manager.
}
LEFT_OUT_WITH_FORK = {
    "ProcessPoolExecutorTest.test_max_tasks_per_child": "expects fork to be refused: see test_max_tasks_with_fork",
}
LEFT_OUT_WITH_CLOUDPICKLE = {
    "_TestPoolWorkerErrors.test_unpickleable_result": "a lambda can be sent then: see test_result_that_cannot_be_sent",
}


def _left_out(method: str) -> dict[str, str]:
    left_out = dict(LEFT_OUT)
    if method == "fork":
        left_out |= LEFT_OUT_WITH_FORK
    if importlib.util.find_spec("cloudpickle") is not None:
        left_out |= LEFT_OUT_WITH_CLOUDPICKLE
    return left_out


# ---------------------------------------------------------------------------------------------------------------------
# finding the tests


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"test.{name}")
    except (ImportError, unittest.SkipTest):
        return None


def _futures_tests(name: str) -> ModuleType | None:
    """Up to some 3.11, they were one module."""
    whole = _load("test_concurrent_futures")
    if whole is None or not hasattr(whole, "__path__"):
        return whole
    return _load(f"test_concurrent_futures.{name}")


def _skipped(missing: str) -> Callable[[], None]:
    @pytest.mark.skip(reason=f"this interpreter comes without test.{missing}")
    def skipped() -> None:
        raise AssertionError

    return skipped


# ---------------------------------------------------------------------------------------------------------------------
# our classes in the place of CPython's


class WatchedPool(Pool):
    """With names for what the tests look at."""

    @property
    def _pool(self) -> list[Any]:
        return self.workers

    def _repopulate_pool(self) -> None:
        wait_until(lambda: len(self.workers) == self._crew.processes, "dead workers are replaced")


class _Joined:
    def join_thread(self) -> None:
        pass


class WatchedExecutor(Executor):
    """With names for what the tests look at."""

    _call_queue = _Joined()

    @property
    def _processes(self) -> dict[int | None, Any]:
        return {process.pid: process for process in self.workers}

    @property
    def _executor_manager_thread(self) -> Any:
        return self._crew._thread

    @property
    def _broken(self) -> Any:
        return self._crew.broken


def _pool_factory(method: str) -> Callable[..., Pool]:
    return functools.partial(WatchedPool, context=multiprocessing.get_context(method))


def _ours(text: Any) -> Any:
    """The same source with our classes."""
    if not isinstance(text, str):
        return text
    text = re.sub(
        r"from multiprocessing import Pool, (\w+)",
        r"from multiprocessing import \1; from multisocket.pool import Pool",
        text,
    )
    text = text.replace("from multiprocessing import Pool", "from multisocket.pool import Pool")
    text = re.sub(r"from concurrent\.futures import (\w+)", r"from multisocket.pool import Executor as \1", text)
    assert not re.search(r"multiprocessing import Pool|concurrent\.futures", text), "it would test CPython's"
    return text


def _with_our_text(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_ours, args), **{name: _ours(value) for name, value in kwargs.items()})

    return call


class Replacing:
    """Base of test classes that have things replaced while they run."""

    replaced: tuple[tuple[Any, str, Any], ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        background().call(lambda: None)  # its thread is not one that a test has left behind
        with contextlib.ExitStack() as stack:
            if sys.version_info < (3, 11):  # it waits for the very same threads, and ours are others after each fork
                stack.enter_context(mock.patch("test.support.threading_helper.threading_cleanup"))
            for where, name, value in cls.replaced:
                stack.enter_context(mock.patch.object(where, name, value))
            cls.addClassCleanup(stack.pop_all().close)  # type: ignore[attr-defined]
        super().setUpClass()  # type: ignore[misc]


def _make(base: type, method: str, *mixins: type, **more: Any) -> None:
    """Makes a class of tests for a start method. Under its name here, where other processes look for it."""
    name = f"Test{base.__name__.lstrip('_').removeprefix('Test')}{method.capitalize()}"
    left_out = {
        wanted.partition(".")[2]: None
        for wanted in _left_out(method)
        if wanted.partition(".")[0] in {one.__name__ for one in base.__mro__}
    }
    globals()[name] = type(name, (Replacing, base, *mixins), {"__module__": __name__, **left_out, **more})


@pytest.fixture(autouse=True, scope="class")
def leaves_nothing() -> Iterator[None]:
    """These classes share pools among their tests: so they are looked at as a whole."""
    before = names_in_shm()
    yield
    gc.collect()
    wait_until(lambda: not children(), "child processes end")
    wait_until(lambda: not (_own_names() - before), "shared memory is removed")


def _own_names() -> set[str]:
    prefix = Path(names.guard_path()).name.removesuffix(".guard")
    return {name for name in names_in_shm() if name.startswith(f"{prefix}-")}


# ---------------------------------------------------------------------------------------------------------------------
# multiprocessing.Pool

_mp = _load("_test_multiprocessing")
_mains = _load("test_multiprocessing_main_handling")


def _make_pool_tests(tests: Any) -> None:
    shell: Any = _load("support.script_helper")
    for method in START_METHODS:
        pool = _pool_factory(method)
        replaced = (
            (multiprocessing, "Pool", pool),
            (shell, "assert_python_ok", _with_our_text(shell.assert_python_ok)),
        )
        for base in (tests._TestPool, tests._TestPoolWorkerErrors, tests._TestPoolWorkerLifetime):
            more = {"Pool": staticmethod(pool), "replaced": replaced}
            _make(base, method, tests.ProcessesMixin, unittest.TestCase, **more)
        _make(tests.TestInitializers, method, replaced=replaced)


def _make_main_tests(tests: Any) -> None:
    replaced = tuple((tests, name, _with_our_text(getattr(tests, name))) for name in ("make_script", "make_zip_pkg"))
    _make(tests.ForkCmdLineTest, "fork", replaced=replaced)
    _make(tests.SpawnCmdLineTest, "spawn", replaced=replaced)
    _make(tests.ForkServerCmdLineTest, "forkserver", replaced=replaced)


if _mp is not None:
    _make_pool_tests(_mp)
else:
    test_multiprocessing_pools = _skipped("_test_multiprocessing")

if _mains is not None:
    _make_main_tests(_mains)
else:
    test_main_modules = _skipped("test_multiprocessing_main_handling")


# ---------------------------------------------------------------------------------------------------------------------
# ProcessPoolExecutor

_util = _futures_tests("util")

# As a dead worker or a bad pickle fails only its own task, that tells what is wrong with it.
_ERRORS: dict[str, type[BaseException]] = {
    "test_exit_at_task_unpickle": SystemExit,
    "test_error_at_task_unpickle": pickle.UnpicklingError,
    "test_error_during_result_unpickle_in_result_handler": pickle.UnpicklingError,
    "test_exit_during_result_unpickle_in_result_handler": SystemExit,
}


def _check_crash(self: Any, error: type[BaseException], func: Any, *args: Any, ignore_stderr: bool = False) -> None:
    """In the place of the deadlock tests' own: the task fails, and others go on."""
    executor = self.executor
    test = self.id().rpartition(".")[2]
    error = _ERRORS.get(test, WorkerDied if issubclass(error, futures.BrokenExecutor) else error)
    before = executor.submit(pow, 2, 7)
    with pytest.raises(error):
        executor.submit(func, *args).result(DEADLINE)
    assert before.result(DEADLINE) == 128
    assert list(executor.map(pow, range(20), range(20), timeout=DEADLINE)) == [i**i for i in range(20)]
    executor.shutdown()


def _make_executor_tests() -> None:
    replaced = (
        (futures, "ProcessPoolExecutor", WatchedExecutor),
        (futures_process, "_RemoteTraceback", multiprocessing.pool.RemoteTraceback),  # type: ignore[attr-defined]
    )
    shutdown: Any = _futures_tests("test_shutdown")
    shell = (shutdown, "assert_python_ok", _with_our_text(shutdown.assert_python_ok))
    each = {
        _futures_tests("test_process_pool").ProcessPoolExecutorTest: {},  # type: ignore[union-attr]
        shutdown.ProcessPoolShutdownTest: {"replaced": (*replaced, shell)},
        _futures_tests("test_wait").WaitTests: {},  # type: ignore[union-attr]
        _futures_tests("test_as_completed").AsCompletedTests: {},  # type: ignore[union-attr]
        _futures_tests("test_deadlock").ExecutorDeadlockTest: {  # type: ignore[union-attr]
            "_check_crash": _check_crash,
            "_check_error": _check_crash,  # its name from Python 3.14 on
        },
        _futures_tests("test_init").InitializerMixin: {},  # type: ignore[union-attr]
        # CPython logs in the worker; ours tells it where the task is waited for, see test_failing_initializer.
        _futures_tests("test_init").FailingInitializerMixin: {  # type: ignore[union-attr]
            "_assert_logged": lambda self, text: contextlib.nullcontext()
        },
    }
    for method in START_METHODS:
        mixin = getattr(_util, f"ProcessPool{method.capitalize()}Mixin")
        for base, more in each.items():
            # How Futures are waited for has nothing to do with how processes are started.
            if method == "fork" or base.__name__ not in {"WaitTests", "AsCompletedTests"}:
                more = {"executor_type": WatchedExecutor, "replaced": replaced, **more}
                _make(base, method, mixin, _util.BaseTestCase, **more)  # type: ignore[union-attr]


if _util is not None:
    _make_executor_tests()
else:
    test_executors = _skipped("test_concurrent_futures")


# ---------------------------------------------------------------------------------------------------------------------
# in the place of what was left out


def _executor(method: str, workers: int = 2, **options: Any) -> Executor:
    return Executor(workers, multiprocessing.get_context(method), **options)


def _kill_self(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@methods
def test_killed_child_fails_only_its_task(method: str) -> None:
    with _executor(method) as executor:
        dying = executor.submit(_kill_self)
        others = [executor.submit(pow, 2, i) for i in range(20)]
        with pytest.raises(WorkerDied, match="SIGKILL") as caught:
            dying.result(DEADLINE)
        assert caught.value.exitcode == -signal.SIGKILL
        assert isinstance(caught.value, futures_process.BrokenProcessPool)
        assert [other.result(DEADLINE) for other in others] == [2**i for i in range(20)]
        assert executor.submit(pow, 2, 8).result(DEADLINE) == 256


@methods
def test_saturation(method: str) -> None:
    """As many tasks as there are: no more processes than workers, and not fewer."""
    with _executor(method, 3) as executor:
        done = [executor.submit(time.sleep, 0.01) for _ in range(45)]
        assert len(executor.workers) == 3
        futures.wait(done, DEADLINE)
        assert len(executor.workers) == 3


@methods
def test_processes_terminate(method: str) -> None:
    executor = _executor(method, 3)
    for _ in range(3):
        executor.submit(time.sleep, 0.01)
    workers = executor.workers
    assert len(workers) == 3
    executor.shutdown()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def _wait_for_signal(folder: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    Path(folder, "ready").touch()
    time.sleep(DEADLINE)


@methods
@pytest.mark.parametrize(("end", "code"), [("terminate_workers", 7), ("kill_workers", -signal.SIGKILL)])
def test_terminating_and_killing(method: str, end: str, code: int, tmp_path: Path) -> None:
    """Those who are terminated may handle the signal."""
    executor = _executor(method, 1)
    running = executor.submit(_wait_for_signal, str(tmp_path))
    waiting = executor.submit(abs, -1)
    wait_until((tmp_path / "ready").exists, "it runs")
    (worker,) = executor.workers
    getattr(executor, end)()
    assert worker.exitcode == code
    for future in (running, waiting):
        with pytest.raises(Terminated):
            future.result(DEADLINE)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)
    getattr(executor, end)()  # twice is no error


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_terminating_before_the_first_task(end: str) -> None:
    executor = _executor("fork", 1)
    getattr(executor, end)()
    assert not executor.workers
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def _wait_and_give(folder: str, number: int) -> int:
    Path(folder, "ready").touch()
    wait_until(Path(folder, "go").exists, "it may go on")
    return number


@methods
@pytest.mark.parametrize("is_shut_down", [True, False])
def test_dropped_executor_does_all_it_was_given(method: str, is_shut_down: bool, tmp_path: Path) -> None:
    """Also where a worker that has done its number of tasks must be replaced."""
    executor = _executor(method, 1, max_tasks_per_child=1)
    running = [executor.submit(_wait_and_give, str(tmp_path), i) for i in range(3)]
    wait_until((tmp_path / "ready").exists, "the first one runs")
    if is_shut_down:
        executor.shutdown(wait=False)
    del executor
    gc.collect()
    (tmp_path / "go").touch()
    assert [future.result(DEADLINE) for future in running] == [0, 1, 2]


def test_max_tasks_with_fork() -> None:
    with _executor("fork", 1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(DEADLINE) for _ in range(9)]
    assert [len(set(pids[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3


_EXIT = """
import sys, time, multiprocessing
from multisocket.pool import Executor
def late(text):
    time.sleep(0.3)
    print(text, flush=True)
if __name__ == "__main__":
    executor = Executor(3, multiprocessing.get_context(sys.argv[1]))
    executor.submit(late, "apple")
    executor.shutdown(wait=False)
"""


@methods
def test_exit_with_running_futures(folder: Path, method: str) -> None:
    script = folder / "script.py"  # where spawned processes find it again
    script.write_text(_EXIT)
    done = subprocess.run(
        [sys.executable, script, method], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("apple", "", 0)


def _fail() -> None:
    raise ValueError("not today")


@methods
def test_failing_initializer(method: str) -> None:
    with _executor(method, initializer=_fail) as executor:
        # It may be known before the task is there, or after.
        with pytest.raises(InitializerFailed, match="ValueError: not today") as caught:
            executor.submit(pow, 2, 8).result(DEADLINE)
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(InitializerFailed):
            executor.submit(pow, 2, 8)


def test_unclosed_pool_warns() -> None:
    pools = [Pool(1)]
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        pools.clear()


def _unsendable() -> Any:
    return threading.Lock()


@methods
def test_result_that_cannot_be_sent(method: str) -> None:
    with _pool_factory(method)(2) as pool:
        workers = {worker.pid for worker in pool.workers}
        for _ in range(20):
            told: list[Any] = []
            result = pool.apply_async(_unsendable, error_callback=told.append)
            with pytest.raises(MaybeEncodingError) as caught:
                result.get(DEADLINE)
            assert told == [caught.value]
            assert "lock" in caught.value.exc
            assert "lock" in caught.value.value
        assert {worker.pid for worker in pool.workers} == workers


def test_no_process_stays_when_one_cannot_start() -> None:
    context = multiprocessing.get_context("fork")
    started: list[Any] = []

    class Failing(context.Process):  # type: ignore[name-defined,misc]
        def start(self) -> None:
            if len(started) == 3:
                raise OSError("no more")
            super().start()
            started.append(self)

    with mock.patch.object(context, "Process", Failing, create=True), pytest.raises(OSError, match="no more"):
        Pool(5, context=context)
    assert len(started) == 3
    assert not any(process.is_alive() for process in started)


def _inner(method: str) -> list[int]:
    context = multiprocessing.get_context(method)
    with Pool(2, context=context) as pool, Executor(2, context) as executor:
        return pool.map(abs, range(-3, 0)) + list(executor.map(abs, range(-3, 0)))


@methods
def test_pool_in_worker(method: str) -> None:
    """Unlike CPython's, workers may have children."""
    with _pool_factory(method)(2) as pool:
        assert pool.map(_inner, [method] * 2, 1) == [[3, 2, 1, 3, 2, 1]] * 2


def _in_child(method: str) -> None:
    assert _inner(method) == [3, 2, 1, 3, 2, 1]


def test_pool_in_child(processes: Processes) -> None:
    """A process that was forked beside a pool can have one of its own, but not use that."""
    with Pool(2, context=multiprocessing.get_context("fork")) as pool:
        assert pool.map(abs, [-1]) == [1]
        processes.join(processes.start(_in_child, "fork"))
        assert pool.map(abs, [-2]) == [2]


def test_pool_in_thread(threads: Callable[..., threading.Thread]) -> None:
    results: list[Any] = []
    running = [threads(lambda: results.append(_inner("fork"))) for _ in range(2)]
    for thread in running:
        thread.join(DEADLINE)
    assert results == [[3, 2, 1, 3, 2, 1]] * 2


def test_unused_executor_leaves_nothing() -> None:
    before = set(threading.enumerate())
    executor = _executor("fork")
    del executor
    gc.collect()
    assert not children()
    assert not {one for one in set(threading.enumerate()) - before if one.name == "multisocket-crew"}


def test_map_reads_its_items_at_once() -> None:
    with _executor("fork") as executor:
        items = iter(range(100))
        results = executor.map(abs, items)
        assert next(items, None) is None
        assert list(results) == list(range(100))
        items = iter(range(100))
        results = executor.map(abs, items, buffersize=3)
        assert next(items) == 3
        assert list(results) == [0, 1, 2, *range(4, 100)]
        items = iter(range(100))
        results = executor.map(abs, items, buffersize=3, chunksize=2)
        assert next(items) == 6
        assert list(results) == [0, 1, 2, 3, 4, 5, *range(7, 100)]


class _DiesWhenRead:
    def __reduce__(self) -> Any:
        return _kill_self, ()


@methods
def test_argument_that_kills_who_reads_it(method: str) -> None:
    """It kills a worker, but not who tells what that worker was doing."""
    with _pool_factory(method)(2) as pool:
        dying = pool.apply_async(id, (_DiesWhenRead(),))
        others = pool.map_async(abs, range(20))
        with pytest.raises(WorkerDied, match=r"SIGKILL.* while it ran id of <_kill_self>"):
            dying.get(DEADLINE)
        assert others.get(DEADLINE) == list(range(20))


class _Result:
    pass


def _make_result(_: Any) -> _Result:
    return _Result()


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_keeps_no_result(chunksize: int) -> None:
    with _executor("fork") as executor:
        for result in executor.map(_make_result, range(10), chunksize=chunksize):
            kept = weakref.ref(result)
            del result
            assert kept() is None


def test_dropped_executor_ends_its_workers() -> None:
    executor = _executor("fork")
    results = executor.map(abs, range(10))
    workers = executor.workers
    del executor
    gc.collect()
    wait_until(lambda: not any(worker.is_alive() for worker in workers), "workers end")
    assert list(results) == list(range(10))


def test_pool_cannot_be_sent() -> None:
    with Pool(1) as pool, pytest.raises(NotImplementedError, match="process"):
        pickle.dumps(pool)


def test_repr_tells_the_state() -> None:
    pool = Pool(2)
    assert repr(pool) == "<multisocket.pool.Pool state=RUN pool_size=2>"
    pool.close()
    assert "state=CLOSE" in repr(pool)
    pool.terminate()
    assert "state=TERMINATE" in repr(pool)
