"""Pools: tasks for two worker processes, against the pools of the standard library, and joblib's.

Each side runs in a fresh interpreter, which starts its workers before anything is measured.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Any

from .crew import CellFailed, Metrics
from .measure import Job
from .peers import OURS, missing, versions
from .plan import MIB, Cell, Settings, Side

PART = "pool"
WORKERS = 2

_WHO = f"{WORKERS} workers"


def _tasks(kind: str, size: int = 0) -> Cell:
    return Cell(PART, kind, _WHO, size, "tasks")


ONE_BY_ONE = _tasks("imap_unordered one by one")
SUBMIT = _tasks("submit")
MAP_INTS = _tasks("map of ints")
MAP_TUPLES = _tasks("map of tuples")
ARRAYS = _tasks("arrays there and back", 10 * MIB)
JOBLIB = {number: _tasks(f"joblib, {number} tasks a call") for number in (1_000, 10_000, 100_000)}
UNEVEN = Cell(PART, "uneven tasks that sleep, map", _WHO, 0, "schedule")
UNEVEN_BUSY = Cell(PART, "uneven tasks that compute, map", _WHO, 0, "schedule")

POOL = Side("multiprocessing.Pool")
FUTURES = Side("ProcessPoolExecutor")
LOKY = Side("joblib", "loky")
SIDES = (Side(OURS), Side(OURS, "Executor"), POOL, FUTURES, LOKY)

# Tasks of a call; enough that its beginning and end do not matter.
_SMALL = 5_000
_MAPPED = 100_000
_ARRAYS = 20
# Arrays that are under way at once, where the caller decides that.
_AHEAD = 2 * WORKERS

# Seconds that uneven tasks take, and how many do. One in fifty is as long as fifty others.
_UNEVEN = ((0.002, 160), (0.02, 36), (0.1, 4))
_LOOPS_A_SECOND = 10_000_000

# A fresh interpreter takes its time to start, and so do workers.
_DEADLINES = 4

if importlib.util.find_spec("joblib") is None:
    missing["joblib"] = "it is not installed"
else:
    versions["joblib"] = importlib.metadata.version("joblib")


# --- the tasks ---


def same(x: Any) -> Any:
    return x


def negative(array: Any) -> Any:
    return -array


def busy(seconds: float) -> int:
    total = 0
    for i in range(int(seconds * _LOOPS_A_SECOND)):
        total += i
    return total


# --- the sides ---


@dataclass(frozen=True)
class _Way:
    """How a side does what a cell asks for.

    :param make: its pool, or nothing.
    :param measure: does it.
    """

    make: Callable[[], contextlib.AbstractContextManager[Any]]
    measure: Callable[[Any, float], Metrics]


def _our_pool() -> Any:
    from multisocket.pool import Pool

    return Pool(WORKERS)


def _our_executor() -> Any:
    from multisocket.pool import Executor

    return Executor(WORKERS)


def _pool() -> Any:
    return multiprocessing.Pool(WORKERS)


def _executor() -> Any:
    return ProcessPoolExecutor(WORKERS)


def _repeated(call: Callable[[], int], window: float) -> Metrics:
    """Tasks a second.

    :param call: does some, and says how many; the first one does not count.
    :param window: seconds, at least.
    """
    call()
    done, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < window or not done:
        done += call()
    return {"tasks": done / passed}


def _one_by_one(pool: Any, window: float) -> Metrics:
    return _repeated(lambda: sum(1 for _ in pool.imap_unordered(same, range(_SMALL), chunksize=1)), window)


def _submit(executor: Executor, window: float) -> Metrics:
    def call() -> int:
        futures = [executor.submit(same, number) for number in range(_SMALL)]
        return sum(1 for future in futures if future.result() is not None)

    return _repeated(call, window)


def _map(items: list[Any], pool: Any, window: float) -> Metrics:
    return _repeated(lambda: len(pool.map(same, items)), window)


def _arrays_mapped(pool: Any, window: float) -> Metrics:
    array = _array()
    return _repeated(lambda: _checked(pool.imap_unordered(negative, repeat(array, _ARRAYS)), array), window)


def _arrays_submitted(executor: Executor, window: float) -> Metrics:
    array = _array()
    return _repeated(lambda: _checked(_ahead(executor, repeat(array, _ARRAYS)), array), window)


def _array() -> Any:
    import numpy

    return numpy.ones(ARRAYS.size // 8)


def _ahead(executor: Executor, arrays: Iterable[Any]) -> Iterator[Any]:
    rest = iter(arrays)
    under_way: deque[Future[Any]] = deque(executor.submit(negative, array) for array in islice(rest, _AHEAD))
    while under_way:
        yield under_way.popleft().result()
        under_way.extend(executor.submit(negative, array) for array in islice(rest, 1))


def _checked(results: Iterable[Any], array: Any) -> int:
    """How many there are."""
    number = 0
    for result in results:
        number += 1
        if result.shape != array.shape or result[-1] != -1:
            raise CellFailed("a result is wrong")
    return number


def _joblib(backend: str, number: int, _: Any, window: float) -> Metrics:
    import joblib

    if backend == OURS:
        import multisocket.pool.joblib  # noqa: F401

    def call() -> int:
        parallel = joblib.Parallel(n_jobs=WORKERS, backend=backend)
        return len(parallel(joblib.delayed(same)(i) for i in range(number)))

    return _repeated(call, window)


def _durations() -> list[float]:
    found = [seconds for seconds, number in _UNEVEN for _ in range(number)]
    random.Random(6).shuffle(found)
    return found


def _uneven(pool: Any, _: float) -> Metrics:
    durations = _durations()
    pool.map(same, range(1000))
    begin = time.perf_counter()
    pool.map(time.sleep, durations)
    return {"schedule": (time.perf_counter() - begin) / (sum(durations) / WORKERS)}


def _uneven_busy(pool: Any, _: float) -> Metrics:
    durations = [seconds / 2 for seconds in _durations()]
    pool.map(same, range(1000))
    begin = time.perf_counter()
    list(map(busy, durations))
    ideal = (time.perf_counter() - begin) / WORKERS
    begin = time.perf_counter()
    pool.map(busy, durations)
    return {"schedule": (time.perf_counter() - begin) / ideal}


_POOLS: dict[Cell, Callable[[Any, float], Metrics]] = {
    ONE_BY_ONE: _one_by_one,
    MAP_INTS: partial(_map, list(range(_MAPPED))),
    MAP_TUPLES: partial(_map, [(number, str(number)) for number in range(_MAPPED)]),
    UNEVEN: _uneven,
    UNEVEN_BUSY: _uneven_busy,
}

_WAYS: dict[Cell, dict[Side, _Way]] = {
    ONE_BY_ONE: {},
    SUBMIT: {Side(OURS): _Way(_our_executor, _submit), FUTURES: _Way(_executor, _submit)},
    MAP_INTS: {},
    MAP_TUPLES: {},
    ARRAYS: {
        Side(OURS): _Way(_our_pool, _arrays_mapped),
        Side(OURS, "Executor"): _Way(_our_executor, _arrays_submitted),
        POOL: _Way(_pool, _arrays_mapped),
        FUTURES: _Way(_executor, _arrays_submitted),
    },
    **{
        cell: {
            Side(OURS): _Way(contextlib.nullcontext, partial(_joblib, OURS, number)),
            LOKY: _Way(contextlib.nullcontext, partial(_joblib, "loky", number)),
        }
        for number, cell in JOBLIB.items()
    },
    UNEVEN: {},
    UNEVEN_BUSY: {},
}
for _cell, _function in _POOLS.items():
    _WAYS[_cell] = {Side(OURS): _Way(_our_pool, _function), POOL: _Way(_pool, _function)}


# --- measuring ---


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for cell, ways in _WAYS.items():
        if cell in JOBLIB.values() and "joblib" in missing:
            continue
        for side in ways:
            yield Job(cell, side, partial(_measure, cell, side, settings))


def _measure(cell: Cell, side: Side, settings: Settings) -> Metrics:
    """In a fresh interpreter. When it is late, it is killed with all of its workers."""
    code = f"from bench import pool; pool.play({list(_WAYS).index(cell)}, {SIDES.index(side)}, {settings.window})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=_DEADLINES * settings.deadline)
    except subprocess.TimeoutExpired:
        raise CellFailed("no end in time") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise CellFailed((errors.strip() or f"it ended with {process.returncode}").splitlines()[-1])
    metrics: Metrics = json.loads(out.splitlines()[-1])
    return metrics


def play(cell: int, side: int, window: float) -> None:
    """What a fresh interpreter does.

    :param cell: which.
    :param side: which.
    :param window: seconds to measure.
    """
    way = _WAYS[list(_WAYS)[cell]][SIDES[side]]
    with way.make() as pool:
        print(json.dumps(way.measure(pool, window)))
