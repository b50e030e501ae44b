"""Memory stays bounded, whatever is read, and whoever takes the results slowly, or not at all."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import DEADLINE, wait_until
from multisocket.pool import results

from . import jobs

Make = Callable[..., Any]
MB = 1 << 20
ways = pytest.mark.parametrize("way", ["imap", "imap_unordered"])


class Source:
    """Endless; counts what was read of it."""

    def __init__(self, make: Callable[[int], Any] = lambda i: i) -> None:
        self.read = 0
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count():
            self.read = i + 1
            yield self.make(i)


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "multisocket-reader"]


@ways
@pytest.mark.parametrize("chunksize", [1, 7])
def test_an_endless_source_is_read_as_far_as_results_are_taken(make_pool: Make, way: str, chunksize: int) -> None:
    source = Source()
    iterator = getattr(make_pool(2), way)(jobs.square, source, chunksize)
    most = 2 * 512 + 3 + results._FETCH
    for taken in range(20000):
        assert source.read <= taken + most * chunksize
        next(iterator)
    wait_until(lambda: source.read >= 20000 + 1000 * chunksize, "it is read ahead of that")


@ways
def test_large_items_are_not_read_far_ahead(make_pool: Make, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(results, "_MOST_BYTES", 20 * MB)
    source = Source(lambda i: bytes([i % 256]) * MB)
    iterator = getattr(make_pool(2), way)(len, source)
    for _ in range(200):
        assert iterator._ahead.bytes <= 22 * MB
        assert next(iterator) == MB
    assert source.read < 2000


@ways
def test_large_results_are_not_made_far_ahead(make_pool: Make, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(results, "_MOST_BYTES", 20 * MB)
    source = Source()
    iterator = getattr(make_pool(2), way)(jobs.make_bytes, source)
    for taken in range(200):
        assert source.read <= taken + 25
        assert len(next(iterator)) == MB


def test_one_slow_item_does_not_stop_an_imap_for_ever(make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that may lie there lies there, and waits for its turn."""
    monkeypatch.setattr(results, "_MOST_BYTES", 4 * MB)
    pool = make_pool(2)
    assert [len(one) for one in pool.imap(jobs.slow_first_bytes, range(50))] == [MB] * 50


@ways
def test_who_drops_an_iterator_stops_its_reading(make_pool: Make, way: str) -> None:
    pool = make_pool(2)
    source = Source()
    iterator = getattr(pool, way)(jobs.square, source)
    assert next(iterator) == 0 or way == "imap_unordered"
    gone = weakref.ref(iterator)
    gc.disable()  # references alone must do
    try:
        del iterator
        wait_until(lambda: not feeders(), "nobody reads any more")
        wait_until(lambda: gone() is None, "nothing is kept")
    finally:
        gc.enable()
    read = source.read
    assert pool.map(jobs.square, range(100)) == [i * i for i in range(100)]
    assert source.read == read


@ways
@pytest.mark.parametrize("end", ["terminate", "close"])
def test_a_consumer_that_stops_early_holds_up_no_end(make_pool: Make, way: str, end: str) -> None:
    pool = make_pool(2)
    for number, _ in enumerate(getattr(pool, way)(jobs.square, Source())):
        if number == 10:
            break
    getattr(pool, end)()
    pool.join()
    wait_until(lambda: not feeders(), "nobody reads any more")


def test_terminate_while_an_endless_source_is_read(make_pool: Make) -> None:
    pool = make_pool(2)
    kept = pool.imap(jobs.square, Source())
    assert next(kept) == 0
    pool.terminate()
    with pytest.raises(Exception, match=r"terminated|closed|ended"):
        list(kept)
    wait_until(lambda: not feeders(), "nobody reads any more")


def test_close_lets_what_is_being_read_be_done(make_pool: Make) -> None:
    pool = make_pool(2)
    kept = pool.imap(jobs.square, range(5000))
    pool.close()
    pool.join()
    assert list(kept) == [i * i for i in range(5000)]


def test_a_pool_lives_as_long_as_its_results_are_waited_for(make_pool: Make) -> None:
    pool = make_pool(1)
    one, many = pool.apply_async(jobs.square, (3,)), pool.imap(jobs.square, range(3000))
    del pool
    gc.collect()
    assert one.get(DEADLINE) == 9
    assert list(many) == [i * i for i in range(3000)]


def test_outcomes_of_dropped_results_are_dropped(make_executor: Make) -> None:
    executor = make_executor(2)
    futures = [executor.submit(jobs.make_bytes, 1) for _ in range(20)]
    gone = [weakref.ref(future) for future in futures]
    gc.disable()
    try:
        del futures
        wait_until(lambda: all(one() is None for one in gone), "no Future is kept")
        wait_until(lambda: not executor._crew.memory_used, "no result is kept")
    finally:
        gc.enable()
