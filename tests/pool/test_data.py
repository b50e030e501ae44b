"""What goes to workers and comes back: as it was, with few copies, and shared memory is given back."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from multiprocessing.pool import MaybeEncodingError
from typing import Any

import pytest

from conftest import DEADLINE, START_METHODS, in_small_memory, wait_until
from multisocket import shm
from multisocket.pool import Executor, Pool, parcel

from . import jobs

np = pytest.importorskip("numpy")

Make = Callable[..., Any]
MB = 1 << 20

ARRAYS = {
    "small": lambda: np.arange(10),
    "medium": lambda: np.arange(10000.0),
    "large": lambda: np.arange(300000.0),
    "in Fortran order": lambda: np.asfortranarray(np.arange(300000.0).reshape(500, 600)),
    "a view with steps": lambda: np.arange(600000.0)[::2],
    "structured": lambda: np.zeros(50000, [("a", "i4"), ("b", "f8", 3)]),
    "empty": lambda: np.empty((0, 7)),
    "without dimensions": lambda: np.array(3.5),
    "of objects": lambda: np.array([1, "two", None, [3.0]] * 1000, dtype=object),
    "of texts": lambda: np.array(["ä" * 20] * 10000),
}


@pytest.mark.parametrize("what", ARRAYS)
@pytest.mark.parametrize("writeable", [True, False], ids=["writable", "read-only"])
def test_arrays_arrive_as_they_were(make_pool: Make, what: str, writeable: bool) -> None:
    array = ARRAYS[what]()
    array.flags.writeable = writeable
    arrived, result = make_pool(1).apply(jobs.is_writable, (array,))
    expected = writeable or what in ("of objects", "a view with steps")  # as with pickle alone
    assert (arrived, result.flags.writeable) == (expected, expected)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.flags.f_contiguous == array.flags.f_contiguous or what == "a view with steps"
    assert result.tolist() == array.tolist() if array.dtype == object else result.tobytes() == array.tobytes()


@pytest.mark.parametrize("method", START_METHODS)
def test_arrays_are_written_by_who_has_them_only(make_pool: Make, method: str) -> None:
    pool = make_pool(2, method=method)
    array = np.zeros(MB)
    results = [pool.apply_async(jobs.fill, (array,)) for _ in range(5)]
    for one in results:
        got = one.get(DEADLINE)
        assert (got == 1).all()
        got += 1
    assert not array.any()


OBJECTS = {
    "bytes": b"x" * MB,
    "a bytearray": bytearray(b"y" * MB),
    "small bytes": b"z" * 100,
    "nested": {"a": [np.arange(100000), (b"x" * MB, {"b": bytearray(300000)})], "c": "ü" * MB},
    "a long text": "x" * MB,
    "many": [b"x" * 200000] * 100,
    "a picklebuffer's bytes": [pickle.PickleBuffer(bytearray(200000))],
}


@pytest.mark.parametrize("what", OBJECTS)
@pytest.mark.parametrize("kind", ["pool", "executor"])
def test_objects_arrive_as_they_were(make_pool: Make, make_executor: Make, what: str, kind: str) -> None:
    if "picklebuffer" in what:
        pytest.importorskip("cloudpickle")  # which alone can pickle the memoryview that becomes of it
    sent = OBJECTS[what]
    if kind == "pool":
        got = make_pool(1).map(jobs.echo, [sent])[0]
    else:
        got = make_executor(1).submit(jobs.echo, sent).result(DEADLINE)
    assert type(got) is type(sent)
    assert _plain(got) == _plain(sent)


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (pickle.PickleBuffer, memoryview)):
        return bytes(obj)
    return obj.tolist() if hasattr(obj, "tolist") else obj


def test_large_bytes_in_an_object_twice_stay_one_object(make_pool: Make) -> None:
    one = [b"x" * MB]
    assert make_pool(1).apply(jobs.is_same_object, ((one, one),))


def test_a_list_that_contains_itself(make_pool: Make) -> None:
    loop: list[Any] = [b"x"]
    loop.append(loop)
    got = make_pool(1).apply(jobs.echo, (loop,))
    assert got[1] is got


def test_arrow(make_pool: Make) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": np.arange(200000), "b": ["x", "y"] * 100000})
    assert make_pool(1).apply(jobs.echo, (table,)).equals(table)


# --- copies ---


def test_large_data_is_copied_once_on_each_way(make_pool: Make) -> None:
    pool = make_pool(1)
    array = np.ones(100 * MB, "u1")
    here = shm.copied_bytes()
    there, got = pool.apply(jobs.copied_so_far, (array,))
    del got
    there_later, got = pool.apply(jobs.copied_so_far, (array,))
    assert got.nbytes == array.nbytes
    assert 100 * MB <= (shm.copied_bytes() - here) / 2 < 101 * MB, "each argument once, no result"
    assert 100 * MB <= there_later - there < 101 * MB, "the result once, no argument"


def test_shared_memory_is_given_back(make_pool: Make) -> None:
    pool = make_pool(2)
    results = pool.map(jobs.make_array, range(20))
    assert pool._crew.memory_used >= 20 * MB
    assert [int(array[-1]) for array in results] == list(range(20))
    del results
    wait_until(lambda: not pool._crew.memory_used, "all results are given back")


def test_results_that_are_dropped_unread_are_given_back(make_pool: Make) -> None:
    pool = make_pool(2)
    for _ in range(5):
        results = [pool.apply_async(jobs.make_array, (i,)) for i in range(10)]
        iterator = pool.imap(jobs.make_array, range(10))
        next(iterator)
        results[-1].wait(DEADLINE)
        del results, iterator
    gc.disable()  # references alone must do
    try:
        wait_until(lambda: not pool._crew.memory_used, "all results are given back")
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["apply", "map", "imap", "submit"])
def test_kept_results_do_not_fill_shared_memory(make_pool: Make, make_executor: Make, way: str) -> None:
    pool: Pool | Executor = make_executor(2) if way == "submit" else make_pool(2)
    assert pool._crew._most_in_place <= 1 << 30
    pool._crew._most_in_place = 4 * MB
    kept: list[Any]
    if isinstance(pool, Executor):
        kept = [future.result(DEADLINE) for future in [pool.submit(jobs.make_array, i) for i in range(60)]]
    elif way == "apply":
        kept = [one.get(DEADLINE) for one in [pool.apply_async(jobs.make_array, (i,)) for i in range(60)]]
    else:
        kept = list(getattr(pool, way)(jobs.make_array, range(60)))
    wait_until(lambda: pool._crew.memory_used < 10 * MB, "few stay in shared memory")
    for i, array in enumerate(kept):
        assert array.flags.writeable
        array += i
        assert (array == 2 * i).all()


SMALL = """
import numpy as np, time
import multisocket as ms
from multisocket.pool import Executor, Pool

def total(array): return int(array.sum(dtype="u8"))
def make(n): return np.ones(n, "u1")
def slow_first(i):
    if i == 0: time.sleep(0.3)
    return np.full(8 << 20, i, "u1")
def both(array): return array + 1

"""

IN_SMALL_MEMORY = {
    "one by one": (
        "pool = Pool(2); print([total(pool.apply(both, (make(20 << 20),))) >> 20 for _ in range(8)] == [40] * 8)"
    ),
    "many arguments": "print(Pool(2).map(total, [make(8 << 20) for _ in range(30)]) == [8 << 20] * 30)",
    "many results": "print([array.nbytes for array in Pool(2).map(make, [8 << 20] * 30)] == [8 << 20] * 30)",
    "many early results": "print([int(array[5]) for array in Pool(2).imap(slow_first, range(30))] == list(range(30)))",
    "submitted": (
        "executor = Executor(2); futures = [executor.submit(both, make(8 << 20)) for _ in range(30)];"
        " print([total(future.result()) for future in futures] == [16 << 20] * 30)"
    ),
    "kept by workers": """
import builtins
def keep(array): builtins.kept = getattr(builtins, "kept", []) + [array]
pool = Pool(1)
try:
    for _ in range(20): pool.apply(keep, (make(8 << 20),))
except ms.OutOfSharedMemory: print(pool.apply(abs, (-1,)) == 1)
""",
    "too large a result": """
pool = Pool(2)
try: pool.apply(make, (100 << 20,))
except ms.OutOfSharedMemory: print(pool.map(abs, range(10)) == list(range(10)))
""",
    "too large an argument": """
pool = Pool(2)
try: pool.apply(total, (make(100 << 20),))
except ms.OutOfSharedMemory: print(pool.map(abs, range(10)) == list(range(10)))
""",
}


@pytest.mark.parametrize("what", IN_SMALL_MEMORY)
def test_little_shared_memory_is_enough_or_it_is_told(what: str) -> None:
    assert in_small_memory("64m", SMALL + IN_SMALL_MEMORY[what]) == "True"


# --- what cannot travel ---


def test_arguments_that_cannot_be_pickled_fail_their_task(make_pool: Make, make_executor: Make) -> None:
    pool, executor = make_pool(1), make_executor(1)
    bad = jobs.Unpicklable()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.apply(jobs.echo, (bad,))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.map(jobs.echo, [1, 2, bad, 3])
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(jobs.echo, bad).result(DEADLINE)
    iterator = pool.imap(jobs.echo, [1, bad, 3])
    assert next(iterator) == 1
    with pytest.raises(TypeError, match="cannot be pickled"):
        next(iterator)
    assert list(iterator) == [3]


def test_arguments_that_cannot_be_unpickled_fail_their_task(make_pool: Make, make_executor: Make) -> None:
    with pytest.raises(ValueError, match="cannot be unpickled"):
        make_pool(1).apply(jobs.echo, (jobs.Unloadable(),))
    executor = make_executor(1)
    with pytest.raises(ValueError, match="cannot be unpickled"):
        executor.submit(jobs.echo, jobs.Unloadable()).result(DEADLINE)
    assert executor.submit(jobs.echo, 1).result(DEADLINE) == 1


@pytest.mark.parametrize("way", ["apply", "imap"])
def test_results_that_cannot_travel_fail_their_task(make_pool: Make, way: str) -> None:
    pool = make_pool(1)

    def get(function: Callable[[], Any]) -> Any:
        return pool.apply(function) if way == "apply" else next(pool.imap(_call, [function]))

    with pytest.raises(MaybeEncodingError, match="cannot be pickled"):
        get(jobs.make_unpicklable)
    with pytest.raises(ValueError, match="cannot be unpickled"):
        get(jobs.make_unloadable)
    assert pool.apply(jobs.echo, (1,)) == 1


def _call(function: Callable[[], Any]) -> Any:
    return function()


def test_results_of_an_executor_that_cannot_travel_fail_their_task(make_executor: Make) -> None:
    executor = make_executor(1)
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(jobs.make_unpicklable).result(DEADLINE)
    with pytest.raises(ValueError, match="cannot be unpickled"):
        executor.submit(jobs.make_unloadable).result(DEADLINE)
    assert executor.submit(jobs.echo, 1).result(DEADLINE) == 1


def test_errors_that_cannot_travel_fail_their_task(make_executor: Make) -> None:
    executor = make_executor(1)
    with pytest.raises(TypeError, match="this error cannot be pickled"):
        executor.submit(jobs.raise_unsendable).result(DEADLINE)
    # With tblib, which comes with dask, it can be unpickled.
    with pytest.raises((pickle.UnpicklingError, jobs.TwoArguments), match=r"missing 1 required|one and two") as raised:
        executor.submit(jobs.raise_two).result(DEADLINE)
    assert "TwoArguments: one and two" in str(raised.value.__cause__), "what it was in the worker"
    assert "in raise_two" in str(raised.value.__cause__)
    with pytest.raises(ValueError, match="x" * 100) as large:
        executor.submit(jobs.raise_large).result(DEADLINE)
    assert large.value.args == (b"x" * MB,)
    assert executor.submit(jobs.echo, 1).result(DEADLINE) == 1


def test_sizes_are_told() -> None:
    packed = parcel.pack([np.zeros(MB, "u1"), b"x" * MB])
    assert 2 * MB <= parcel.size_of(packed) < 2 * MB + 1000
