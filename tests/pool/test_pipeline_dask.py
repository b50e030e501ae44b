"""Pipelines on a dask cluster of two worker processes."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor as BaseExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import DEADLINE, wait_until
from multisocket.pool import InitializerFailed, Pipeline, Stage, StageError

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def executor(client: Any) -> BaseExecutor:
    made: BaseExecutor = client.get_executor()
    return made


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """In place of the look at child processes: the cluster's live longer than a test. Threads of runs do not."""
    yield
    names = ("multisocket-crew", "multisocket-source", "multisocket-borrowed")
    wait_until(lambda: not [t for t in threading.enumerate() if t.name in names], "all threads of runs have ended")


# --- stage functions ---


def square(x: int) -> int:
    return x * x


def none_or_many(x: int) -> Iterator[tuple[int, int]]:
    for i in range(x % 4):
        yield x, i


def same(x: Any) -> Any:
    return x


def refuse_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def array_of(number: int) -> np.ndarray:
    return np.full(1 << 20, number, np.uint8)


def add_in_place(array: np.ndarray) -> np.ndarray:
    array += 1
    return array


def is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def raise_once(folder: str, x: int) -> int:
    if x % 3 == 0 and is_first(f"{folder}/{x}"):
        raise ValueError("once")
    return x


def die_once(folder: str, x: int) -> int:
    if x == 5 and is_first(f"{folder}/{x}"):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(DEADLINE)
    return x


def await_file(path: str, x: int) -> int:
    wait_until(lambda: os.path.exists(path), "the file is there")
    return x


marks: list[str] = []


def add_mark(mark: str) -> None:
    marks.append(mark)


def count_marks(mark: str, x: int) -> tuple[int, int]:
    return os.getpid(), marks.count(mark)


def fail_to_begin() -> None:
    raise LookupError("no model")


# --- tests ---


def test_the_same_as_here(executor: BaseExecutor) -> None:
    pipeline = Pipeline(Stage(square, workers=2), Stage(none_or_many, workers=2), Stage(same, ordered=False))
    assert sorted(pipeline.run(range(1000), executor=executor)) == sorted(pipeline.run(range(1000)))
    ordered = Pipeline(Stage(refuse_odd, workers=2, on_error="yield"), Stage(square, workers=2))
    here, there = list(ordered.run(range(50))), list(ordered.run(range(50), executor=executor))
    assert [str(result) for result in here] == [str(result) for result in there]
    assert [x.item for x in there if isinstance(x, StageError)] == list(range(1, 50, 2))


def test_equal_items_are_all_done(executor: BaseExecutor) -> None:
    """Dask does a call once that is made again with the same arguments; these are not such."""
    assert list(Pipeline(Stage(square, workers=2, batch=1)).run([3] * 40, executor=executor)) == [9] * 40


def test_an_error_ends_the_run(executor: BaseExecutor) -> None:
    with pytest.raises(ValueError, match="1 is odd") as raised:
        list(Pipeline(refuse_odd, square).run(range(50), executor=executor))
    assert "in refuse_odd" in str(raised.value.__cause__)


def test_what_a_function_raises_is_tried_again(executor: BaseExecutor, tmp_path: Path) -> None:
    """And is not what dask remembers of the first time."""
    stage = Stage(functools.partial(raise_once, str(tmp_path)), workers=2, retries=1, batch=1)
    with Pipeline(stage).run(range(30), executor=executor) as run:
        assert list(run) == list(range(30))
        assert run.stats()[0].retried == 10


def test_arrays(executor: BaseExecutor) -> None:
    for number, array in enumerate(Pipeline(array_of, Stage(add_in_place, workers=2)).run(range(8), executor=executor)):
        array += 1
        assert (array == number + 2).all()


def test_an_initializer_is_called_once_in_each_process(executor: BaseExecutor, tmp_path: Path) -> None:
    mark = str(tmp_path)
    stage = Stage(functools.partial(count_marks, mark), workers=4, initializer=add_mark, initargs=(mark,), batch=1)
    found = set(Pipeline(stage).run(range(60), executor=executor))
    assert {count for _, count in found} == {1}
    assert os.getpid() not in {pid for pid, _ in found}


def test_an_initializer_that_raises(executor: BaseExecutor) -> None:
    with pytest.raises(InitializerFailed, match="no model"):
        list(Pipeline(Stage(square, initializer=fail_to_begin, on_error="skip")).run(range(50), executor=executor))


def test_lambdas(executor: BaseExecutor) -> None:
    offset = 5
    assert list(Pipeline(lambda x: x + offset).run(range(10), executor=executor)) == list(range(5, 15))


def test_an_early_end_cancels_what_has_not_begun(client: Any, executor: BaseExecutor, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    tasks = client.cluster.scheduler.tasks
    before = set(tasks)
    with Pipeline(Stage(functools.partial(await_file, path), workers=4, batch=1)).run(range(100), executor=executor):
        wait_until(lambda: len(set(tasks) - before) >= 4, "some have begun")
        assert len(set(tasks) - before) <= 8
    wait_until(lambda: set(tasks) <= before, "all are cancelled")
    Path(path).touch()
    assert executor.submit(square, 5).result(DEADLINE) == 25


def test_no_more_than_a_few_are_on_the_cluster(client: Any, executor: BaseExecutor) -> None:
    before, most = len(client.cluster.scheduler.tasks), 0
    with Pipeline(Stage(same, workers=2, batch=1)).run(range(200), executor=executor) as run:
        for number, result in enumerate(run):
            assert result == number
            most = max(most, len(client.cluster.scheduler.tasks))
    assert most - before < 30  # some are done, and not forgotten yet


def test_a_killed_worker_loses_nothing(executor: BaseExecutor, tmp_path: Path) -> None:
    """Dask does again what it was doing, on another one."""
    stage = Stage(functools.partial(die_once, str(tmp_path)), workers=2)
    assert list(Pipeline(stage, square).run(range(20), executor=executor)) == [x * x for x in range(20)]


def test_two_runs_share_a_cluster(executor: BaseExecutor) -> None:
    pipeline = Pipeline(Stage(square, workers=2))
    with pipeline.run(range(100), executor=executor) as one, pipeline.run(range(100), executor=executor) as other:
        assert list(zip(one, other, strict=True)) == [(x * x, x * x) for x in range(100)]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # distributed leaves sockets to the garbage collector
def test_a_cluster_that_is_gone() -> None:
    with contextlib.ExitStack() as made:
        cluster = made.enter_context(
            distributed.LocalCluster(
                n_workers=1, processes=False, dashboard_address=None, silence_logs=logging.CRITICAL
            )
        )
        client = made.enter_context(distributed.Client(cluster, set_as_default=False))
        executor = client.get_executor()
        client.close()
        with pytest.raises(Exception, match="takes no more"):
            list(Pipeline(Stage(square, on_error="skip")).run(range(10), executor=executor))
