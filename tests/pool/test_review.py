"""What is easily overlooked: ends that others wait for, lists that change, memory that stays, differing processes."""

from __future__ import annotations

import concurrent.futures
import functools
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from pathlib import Path
from typing import Any

import pytest

from conftest import DEADLINE, wait_until
from multisocket.late_future import LateFuture
from multisocket.pool import InitializerFailed
from multisocket.pool.functions import _REMEMBERED_BYTES, Functions, Loaded

from . import jobs

Make = Callable[..., Any]


def test_a_future_is_finished_once(threads: Make) -> None:
    future: LateFuture[int] = LateFuture()
    future.finish(1)
    refused = threading.Event()

    def again() -> None:
        with pytest.raises(InvalidStateError):
            future.finish(2)
        refused.set()

    threads(again)
    assert refused.wait(DEADLINE)
    assert future.result(0) == 1


def test_who_waits_for_a_cancelled_future_hears_of_the_end(make_executor: Make, tmp_path: Path) -> None:
    executor = make_executor(1)
    futures = [executor.submit(jobs.wait_if, str(tmp_path / "gate"), 0, 0) for _ in range(6)]
    assert futures[-1].cancel()
    executor.terminate_workers()
    assert not concurrent.futures.wait(futures, DEADLINE).not_done


def test_a_list_may_change_while_it_is_mapped(make_pool: Make, tmp_path: Path) -> None:
    pool = make_pool(1)
    gate = tmp_path / "gate"
    blocking = pool.apply_async(jobs.wait_if, (str(gate), 0, 0))
    items = list(range(50))
    result = pool.map_async(jobs.square, items)
    items.clear()
    gate.touch()
    assert blocking.get(DEADLINE) == 0
    assert result.get(DEADLINE) == [x * x for x in range(50)]


def wait_or_refuse(gate: str, i: int) -> int:
    if i == 0:
        raise ValueError("not this one")
    return jobs.wait_if(gate, 1, i)


def test_a_map_that_has_failed_is_ready_when_nothing_of_it_runs(make_pool: Make, tmp_path: Path) -> None:
    pool = make_pool(2)
    gate = tmp_path / "gate"
    told: list[BaseException] = []
    result = pool.map_async(
        functools.partial(wait_or_refuse, str(gate)), range(3), chunksize=1, error_callback=told.append
    )
    wait_until(lambda: pool.stats()["done"] == 2, "the first has failed, and the last is done")
    assert not result.ready()
    gate.touch()
    with pytest.raises(ValueError, match="not this one"):
        result.get(DEADLINE)
    assert len(told) == 1


def test_a_map_whose_item_cannot_be_pickled_fails(make_pool: Make) -> None:
    pool = make_pool(2)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.map_async(jobs.echo, [1, 2, jobs.Unpicklable(), 3], chunksize=1).get(DEADLINE)
    assert pool.map(jobs.square, range(3)) == [0, 1, 4]


@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_all_who_take_results_hear_of_the_end(make_pool: Make, threads: Make, tmp_path: Path, way: str) -> None:
    pool = make_pool(1)
    gate = tmp_path / "gate"
    results = getattr(pool, way)(functools.partial(jobs.wait_if, str(gate), 1), [1])
    taken: list[int] = []
    takers = [threads(lambda: taken.extend(results)) for _ in range(2)]
    wait_until(lambda: results._waiting == 2 and results._length == 1, "both wait, for the last result")
    gate.touch()
    for taker in takers:
        taker.join(DEADLINE)
        assert not taker.is_alive()
    assert taken == [1]


def test_large_functions_are_not_remembered_without_bound() -> None:
    functions, loaded = Functions(), Loaded()
    size = 4 << 20
    try:
        for i in range(40):
            function = functions.of(functools.partial(operator.add, bytes([i]) * size))
            assert loaded.get(function.blob)(b"!") == bytes([i]) * size + b"!"
            name = function.blob[1:].decode()
        del function
        assert 0 < len(functions._by_blob) <= _REMEMBERED_BYTES // size
        assert 0 < len(loaded._by_blob) <= _REMEMBERED_BYTES // size
        assert os.path.exists("/dev/shm/" + name.lstrip("/")), "the last one is still there"
    finally:
        functions.close()


FINGERPRINT = """
from multisocket.pool import InitializerFailed
from multisocket.pool.functions import _fingerprint
def among(x):
    inner = lambda y: y in {("a", 1), ("b", 2), ("c", 3)}
    return x in {"a", "b", "c", "dd", "eee"} or inner(x)
print(_fingerprint(among).hex())
"""


def test_a_fingerprint_is_the_same_in_all_processes() -> None:
    """Strings have other hashes in each process that was not forked, so sets have other orders."""
    seen = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE,
        ).stdout
        for seed in range(1, 5)
    }
    assert len(seen) == 1


def test_a_fingerprint_tells_sets_apart() -> None:
    from multisocket.pool.functions import _fingerprint

    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    exec("def among(x): return x in {1, 2, 3}", one)
    exec("def among(x): return x in {1, 2, 4}", other)
    assert _fingerprint(one["among"]) != _fingerprint(other["among"])


def test_an_error_that_is_told_often_keeps_no_more_frames(make_executor: Make) -> None:
    executor = make_executor(1, initializer=jobs.refuse, initargs=(ValueError,))
    with pytest.raises(InitializerFailed):
        executor.submit(abs, 1).result(DEADLINE)
    lengths = []
    for _ in range(5):
        with pytest.raises(InitializerFailed) as told:
            executor.map(abs, [1])
        lengths.append(len(told.traceback))
    assert len(set(lengths)) == 1, lengths
