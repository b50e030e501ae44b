"""``task_timeout``, and how large batches are, follow what tasks take themselves: not a worker's start, nor what must
be imported first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import START_METHODS
from multisocket.pool import Executor, Pipeline, Pool, Stage, TaskTimeout, crew

LIMIT = 0.5
LOADING = 1.5

# Slow where it is not imported in the parent first.
MODULE = f"""
import multiprocessing, time
if multiprocessing.parent_process() is not None:
    time.sleep({LOADING})
def function(x):
    return x
"""


def _loaded_slowly(value: int) -> int:
    time.sleep(LOADING)
    return value


class SlowToLoad:
    """Becomes a number in the worker, some time later."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded_slowly, (self.value,)


@pytest.fixture
def slow_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "loads_slowly.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import loads_slowly  # type: ignore[import-not-found]

    yield loads_slowly
    del sys.modules["loads_slowly"]


def same(x: Any) -> Any:
    return x


def _apply(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Pool(1, context=method, task_timeout=LIMIT) as pool:
        return [pool.apply(function, (item,)) for item in items], pool.stats()["busy"]


def _map(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Pool(1, context=method, task_timeout=LIMIT) as pool:
        return pool.map(function, items), pool.stats()["busy"]


def _imap(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Pool(1, context=method, task_timeout=LIMIT) as pool:
        return list(pool.imap(function, items)), pool.stats()["busy"]


def _submit(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Executor(1, method, task_timeout=LIMIT) as executor:
        return [future.result() for future in [executor.submit(function, item) for item in items]], executor.stats()[
            "busy"
        ]


def _executor_map(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Executor(1, method, task_timeout=LIMIT) as executor:
        return list(executor.map(function, items, chunksize=2)), executor.stats()["busy"]


def _pipeline(method: str, function: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    with Pipeline(Stage(function, task_timeout=LIMIT), context=method).run(items) as run:
        return list(run), 0.0


WAYS = [_apply, _map, _imap, _submit, _executor_map, _pipeline]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("way", WAYS)
def test_imports_do_not_count(slow_module: Any, way: Callable[..., Any], method: str) -> None:
    results, busy = way(method, slow_module.function, list(range(10)))
    assert results == list(range(10))
    assert busy < LIMIT


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_loading_arguments_does_not_count(way: Callable[..., Any], method: str) -> None:
    results, busy = way(method, same, [SlowToLoad(3), 4])
    assert results == [3, 4]
    assert busy < LIMIT


def test_what_a_task_takes_itself_counts() -> None:
    with Pool(1, context="spawn", task_timeout=LIMIT) as pool:
        assert pool.apply(same, (1,)) == 1
        with pytest.raises(TaskTimeout, match=rf"took longer than the {LIMIT} s of task_timeout"):
            pool.apply(time.sleep, (60,))


def test_loading_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOADING_SECONDS", LIMIT)
    with Pool(1, context="fork", task_timeout=0.1) as pool:
        with pytest.raises(TaskTimeout, match=rf"loading its function or arguments took longer than {LIMIT} s"):
            pool.apply(same, (SlowToLoad(3),))
        assert pool.apply(same, (1,)) == 1
