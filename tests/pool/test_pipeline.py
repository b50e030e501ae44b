"""Pipelines: real worker processes, real kills; memory that stays bounded, and ends that leave nothing."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, children, wait_until
from multisocket import BadOption
from multisocket.pool import (
    Executor,
    InitializerFailed,
    Pipeline,
    Run,
    Stage,
    StageError,
    StageStats,
    TaskTimeout,
    Terminated,
    WorkerDied,
)
from multisocket.shm import copied_bytes

Make = Callable[..., Any]
methods = pytest.mark.parametrize("method", START_METHODS)
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])

# Far more than any stage may read ahead.
MANY = 8_000


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """No thread of a run outlives its test."""
    yield
    wait_until(lambda: not run_threads(), f"all threads of runs have ended: {run_threads()}")


def run_threads() -> list[str]:
    ours = ("multisocket-crew", "multisocket-source", "multisocket-borrowed", "multisocket-progress")
    return [thread.name for thread in threading.enumerate() if thread.name in ours]


class Counting:
    """An endless source that knows how far it was read."""

    def __init__(self, make: Callable[[int], Any] = lambda number: number) -> None:
        self.given = 0
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.given += 1
            yield self._make(self.given - 1)


def settled(look: Callable[[], int]) -> int:
    """A number that has stopped to grow."""
    seen = [-1]

    def stands() -> bool:
        before, seen[0] = seen[0], look()
        time.sleep(0.1)
        return before == seen[0] == look()

    wait_until(stands, "a count stands still")
    return seen[0]


class Gate:
    """A file that processes wait for."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        Path(self.path).touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()


def await_file(path: str) -> None:
    wait_until(lambda: os.path.exists(path), f"{path} is there")


def is_first(path: str) -> bool:
    """Whether nobody has asked before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


# --- stage functions ---


def square(x: int) -> int:
    return x * x


def add_one(x: int) -> int:
    return x + 1


def same(x: Any) -> Any:
    return x


def refuse_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def refuse_all(x: int) -> int:
    raise ValueError(f"not {x}")


def refuse(which: int, x: int) -> int:
    if x == which:
        raise ValueError(f"not {x}")
    return x


def none_or_many(x: int) -> Iterator[tuple[int, int]]:
    for i in range(x % 4):
        yield x, i


def for_ever(x: int) -> Iterator[tuple[int, int]]:
    for i in itertools.count():
        yield x, i


def await_first(gate: str, x: int) -> int:
    if x == 0:
        await_file(gate)
    return x


def await_all(gate: str, x: int) -> int:
    await_file(gate)
    return x


def raise_once(folder: str, x: int) -> int:
    if x % 3 == 0 and is_first(f"{folder}/{x}"):
        raise ValueError("once")
    return x


def die_once(folder: str, x: int) -> int:
    if x % 10 == 0 and is_first(f"{folder}/{x}"):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(DEADLINE)
    return x


def die_at(which: int, x: int) -> int:
    if x == which:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(DEADLINE)
    return x


def values_with_a_fault(folder: str, fault: str, count: int, x: int) -> Iterator[tuple[int, int]]:
    """The first time, a fault in the middle of the first item of three."""
    for i in range(count):
        if i == count // 2 and x % 3 == 0 and is_first(f"{folder}/{x}"):
            if fault == "raises":
                raise ValueError("once")
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(DEADLINE)
        yield x, i


def first_fails_others_never_end(folder: str, x: int) -> Iterator[tuple[int, int]]:
    for i in itertools.count():
        if x == 0 and i == 200:
            if is_first(f"{folder}/0"):
                raise ValueError("once")
            return
        yield x, i


def hang_at(which: int, x: int) -> int:
    if x == which:
        time.sleep(DEADLINE)
    return x


state: list[int] = []


def remember(number: int) -> None:
    state.append(number)


def remembered(x: int) -> tuple[int, list[int]]:
    return x, state


def fail_to_begin() -> None:
    raise LookupError("no model")


def die_at_once() -> None:
    os._exit(7)


def array_of(number: int) -> np.ndarray:
    return np.full(1 << 20, number % 256, np.uint8)


def add_in_place(array: np.ndarray) -> np.ndarray:
    array += 1
    return array


def sum_of(array: np.ndarray) -> int:
    return int(array.sum())


def lambda_of(x: int) -> Any:
    return threading.Lock()


def taken(run: Run) -> tuple[list[Any], Exception | None]:
    """Its results, and how it ends."""
    found = []
    try:
        for result in run:
            found.append(result)
    except Exception as error:
        return found, error
    return found, None


# --- results ---


@methods
def test_results_come_in_order_through_all_stages(method: str) -> None:
    pipeline = Pipeline(Stage(square, workers=2), add_one, context=multiprocessing.get_context(method))
    assert list(pipeline.run(range(1000))) == [x * x + 1 for x in range(1000)]


@methods
def test_an_unordered_stage_loses_nothing(method: str) -> None:
    context = multiprocessing.get_context(method)
    pipeline = Pipeline(
        Stage(square, workers=2, ordered=False), Stage(add_one, workers=2, ordered=False), context=context
    )
    assert sorted(pipeline.run(range(1000))) == [x * x + 1 for x in range(1000)]


def test_an_unordered_stage_lets_slow_items_be_overtaken(gate: Gate) -> None:
    stage = Stage(functools.partial(await_first, gate.path), workers=2, ordered=False, batch=1)
    with Pipeline(stage).run(range(20)) as run:
        others = [next(run) for _ in range(19)]
        assert sorted(others) == list(range(1, 20))
        gate.open()
        assert list(run) == [0]


def test_a_generator_gives_none_one_or_many() -> None:
    want = [(x, i) for x in range(500) for i in range(x % 4)]
    assert list(Pipeline(Stage(none_or_many, workers=2)).run(range(500))) == want
    assert list(Pipeline(Stage(none_or_many, workers=2), Stage(same, workers=2)).run(range(500))) == want
    unordered = Stage(none_or_many, workers=2, ordered=False)
    assert sorted(Pipeline(unordered, Stage(same, ordered=False)).run(range(500))) == want


@orders
def test_nothing_comes_of_nothing(ordered: bool) -> None:
    pipeline = Pipeline(Stage(square, ordered=ordered), Stage(none_or_many, ordered=ordered))
    assert list(pipeline.run()) == []
    assert list(pipeline.run([])) == []
    assert list(pipeline.run([], iter(()))) == []
    assert list(pipeline.run([0, 2])) == []


@pytest.mark.parametrize("stage", [Stage(refuse_odd, on_error="skip"), Stage(none_or_many)], ids=["skipped", "none"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_nothing_comes_of_the_last_item_in_the_middle(stage: Stage, ordered: bool, gate: Gate) -> None:
    """Then no other stage has anything to do that could tell of the end."""

    def source() -> Iterator[int]:
        yield 2
        await_file(gate.path)
        yield 5 if stage.function is refuse_odd else 4

    with Pipeline(same, replace(stage, ordered=ordered), same).run(source()) as run:
        next(run)
        if stage.function is none_or_many:
            next(run)
        gate.open()
        assert list(run) == []


def test_a_run_that_is_over_stays_so() -> None:
    run = Pipeline(square).run([3])
    assert list(run) == [9]
    assert list(run) == []
    run.close()
    assert next(run, "nothing") == "nothing"


def test_several_sources_each_in_its_own_order() -> None:
    sources = [[(name, i) for i in range(300)] for name in "abc"]
    found = list(Pipeline(Stage(same, workers=2), same).run(*sources))
    assert len(found) == 900
    for name, source in zip("abc", sources, strict=True):
        assert [item for item in found if item[0] == name] == source


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_batches_of_a_size(batch: int) -> None:
    assert list(Pipeline(Stage(square, workers=2, batch=batch)).run(range(100))) == [x * x for x in range(100)]


@methods
def test_each_worker_is_initialized_once(method: str) -> None:
    stage = Stage(remembered, workers=2, initializer=remember, initargs=(5,), batch=1)
    found = list(Pipeline(stage, context=multiprocessing.get_context(method)).run(range(50)))
    assert found == [(x, [5]) for x in range(50)]


def test_a_new_worker_is_initialized_too(tmp_path: Path) -> None:
    die = functools.partial(die_once, str(tmp_path))
    stages = (
        Stage(die, retries=1, initializer=remember, initargs=(3,)),
        Stage(remembered, initializer=remember, initargs=(4,)),
    )
    assert list(Pipeline(*stages).run(range(25))) == [(x, [4]) for x in range(25)]


def test_lambdas_go_by_value() -> None:
    pytest.importorskip("cloudpickle")
    offset = 10
    assert list(Pipeline(lambda x: x + offset).run(range(5))) == [10, 11, 12, 13, 14]


def test_functions_that_cannot_be_sent_are_refused_at_once() -> None:
    lock = threading.Lock()
    before = children()
    # The second is told without cloudpickle, before Python 3.14; the third from then on.
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        Pipeline(square, lambda x: (lock, x)).run(range(5))
    assert children() == before


def test_an_initializer_that_cannot_be_sent_is_refused_at_once() -> None:
    stage = Stage(square, workers=2, initializer=threading.Lock().acquire)
    with pytest.raises(TypeError):
        Pipeline(square, stage, context=multiprocessing.get_context("spawn")).run(range(5))


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"batch": 0}, {"retries": -1}, {"on_error": "no"}, {"task_timeout": 0}]
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOption):
        Stage(square, **wrong)


def test_what_is_no_stage() -> None:
    with pytest.raises(BadOption):
        Pipeline()
    with pytest.raises(BadOption):
        Stage(3)  # type: ignore[arg-type]


# --- memory ---


@orders
def test_a_source_is_read_only_as_fast_as_results_are_taken(ordered: bool) -> None:
    source = Counting()
    stages = Stage(same, workers=2, ordered=ordered), Stage(same, ordered=ordered)
    with Pipeline(*stages).run(source) as run:
        for _ in range(100):
            next(run)
        assert settled(lambda: source.given) < MANY
        for _ in range(3 * MANY):
            next(run)
        assert settled(lambda: source.given) < 4 * MANY


def test_a_slow_item_does_not_let_others_pile_up(gate: Gate) -> None:
    source = Counting()
    stage = Stage(functools.partial(await_first, gate.path), workers=2)
    with Pipeline(stage, same).run(source) as run:
        assert settled(lambda: source.given) < MANY
        gate.open()
        assert [next(run) for _ in range(MANY)] == list(range(MANY))


def test_a_slow_last_stage_holds_all_up(gate: Gate) -> None:
    source = Counting()
    with Pipeline(Stage(same, workers=2), Stage(functools.partial(await_all, gate.path))).run(source) as run:
        assert settled(lambda: source.given) < MANY
        gate.open()
        assert [next(run) for _ in range(100)] == list(range(100))


@orders
def test_endlessly_many_values_of_one_item(ordered: bool) -> None:
    with Pipeline(Stage(for_ever, workers=2, ordered=ordered), Stage(same, ordered=ordered)).run([0, 1, 2, 3]) as run:
        found = [next(run) for _ in range(5000)]
        ready = settled(lambda: sum(stage.ready + stage.queued for stage in run.stats()))
        assert ready < MANY
    for x in {x for x, _ in found}:
        its = [i for y, i in found if y == x]
        assert its == list(range(len(its)))
    if ordered:
        assert {x for x, _ in found} == {0}


@pytest.mark.parametrize("on_error", ["skip", "yield"])
def test_errors_do_not_pile_up(on_error: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "multisocket")
    source = Counting()
    with Pipeline(Stage(refuse_odd, workers=2, on_error=on_error), same).run(source) as run:
        for _ in range(MANY):
            next(run)
        assert settled(lambda: source.given) < 4 * MANY
        assert len(run.errors) <= 1000


def test_the_items_of_skipped_errors_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "multisocket")
    large = (np.zeros(8 << 20, np.uint8) for _ in range(12))
    with Pipeline(Stage(refuse_all, on_error="skip")).run(large) as run:
        assert list(run) == []
    kept = [error.item for error in run.errors]
    assert len(kept) == 12
    assert kept[0] is None
    assert kept[-1].nbytes == 8 << 20


def test_large_results_are_few() -> None:
    """Of 1 MB each: not by number alone is it decided how many there may be."""
    source = Counting()
    with Pipeline(Stage(array_of, workers=2, batch=256)).run(source) as run:
        assert next(run)[0] == 0
        assert settled(lambda: source.given) < 500
        for number in range(1, 200):
            assert next(run)[0] == number
        assert settled(lambda: source.given) < 700


def test_arrays_go_from_stage_to_stage_without_a_copy() -> None:
    count = 20
    before = copied_bytes()
    with Pipeline(Stage(array_of, workers=2), Stage(add_in_place, workers=2), sum_of).run(range(count)) as run:
        assert list(run) == [((number + 1) % 256) << 20 for number in range(count)]
    assert copied_bytes() - before < 1 << 20


def test_arrays_from_the_source_are_copied_once_and_come_writable() -> None:
    arrays = [array_of(number) for number in range(10)]
    before = copied_bytes()
    for number, array in enumerate(Pipeline(Stage(add_in_place, workers=2), add_in_place).run(arrays)):
        array += 1
        assert (array == number + 3).all()
    assert copied_bytes() - before < 11 << 20
    assert all((array == number).all() for number, array in enumerate(arrays))


# --- errors ---


@orders
@pytest.mark.parametrize("at", [0, 50, 99])
def test_an_error_comes_where_the_result_would_have_come(ordered: bool, at: int) -> None:
    stages = Stage(functools.partial(refuse, at), workers=2, ordered=ordered), Stage(square, ordered=ordered)
    run = Pipeline(*stages).run(range(100))
    found, error = taken(run)
    assert isinstance(error, ValueError)
    assert str(error) == f"not {at}"
    if ordered:
        assert found == [x * x for x in range(at)]
    assert list(run) == []


def test_an_error_has_the_workers_traceback() -> None:
    with pytest.raises(ValueError, match="1 is odd") as raised:
        list(Pipeline(refuse_odd).run([1]))
    assert "in refuse_odd" in str(raised.value.__cause__)


@orders
def test_errors_that_are_skipped(ordered: bool, caplog: pytest.LogCaptureFixture) -> None:
    stages = Stage(refuse_odd, workers=2, ordered=ordered, on_error="skip", name="even"), Stage(same, ordered=ordered)
    with Pipeline(*stages).run(range(100)) as run:
        assert sorted(run) == list(range(0, 100, 2))
    assert sorted(error.item for error in run.errors) == list(range(1, 100, 2))
    assert {error.stage for error in run.errors} == {"even"}
    assert "stage even: ValueError: 1 is odd; the item is left out" in caplog.text
    assert [(stats.received, stats.done, stats.failed) for stats in run.stats()] == [(100, 100, 50), (50, 50, 0)]


def test_errors_that_come_out_keep_their_place_through_later_stages() -> None:
    stages = Stage(refuse_odd, workers=2, on_error="yield"), Stage(square, workers=2), Stage(same)
    found = list(Pipeline(*stages).run(range(100)))
    for x, result in enumerate(found):
        if x % 2 == 0:
            assert result == x * x
            continue
        assert isinstance(result, StageError)
        assert (result.stage, result.item) == ("refuse_odd", x)
        assert isinstance(result.error, ValueError)
        assert result.__cause__ is result.error
    assert len(found) == 100


def test_nothing_but_errors_in_a_row() -> None:
    found = list(Pipeline(Stage(refuse_all, workers=2, on_error="yield"), square, same).run(range(5000)))
    assert [error.item for error in found] == list(range(5000))


def test_errors_of_several_stages() -> None:
    first = functools.partial(refuse, 3)
    stages = Stage(first, on_error="yield", name="a"), Stage(functools.partial(refuse, 5), on_error="yield", name="b")
    found = list(Pipeline(*stages).run(range(8)))
    assert [x.stage if isinstance(x, StageError) else x for x in found] == [0, 1, 2, "a", 4, "b", 6, 7]


def test_an_error_can_be_pickled() -> None:
    (error,) = Pipeline(Stage(refuse_all, on_error="yield")).run([1])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.stage, again.item) == (str(error), "refuse_all", None)


def test_the_large_item_of_an_error() -> None:
    stages = Stage(array_of), Stage(refuse_all, on_error="yield", retries=1)
    (error,) = Pipeline(*stages).run([9])
    assert (error.item == 9).all()
    (error,) = Pipeline(Stage(array_of), Stage(refuse_all, on_error="yield")).run([9])
    assert error.item is None


def test_values_before_an_error_stay() -> None:
    one = Stage(functools.partial(values_with_a_fault, "/nowhere", "raises", 4), on_error="yield")
    first, second, error = Pipeline(one).run([3])
    assert (first, second) == ((3, 0), (3, 1))
    assert isinstance(error.error, FileNotFoundError)


@orders
def test_a_source_that_raises_ends_what_came_before_it(ordered: bool, gate: Gate) -> None:
    def source() -> Iterator[int]:
        yield from range(12)  # not more than two workers are surely given while one of them waits
        gate.open()
        raise OSError("no more")

    stages = (
        Stage(functools.partial(await_first, gate.path), workers=2, ordered=ordered),
        Stage(square, ordered=ordered),
    )
    found, error = taken(Pipeline(*stages).run(source()))
    assert isinstance(error, OSError)
    assert str(error) == "no more"
    assert sorted(found) == sorted(x * x for x in range(12))


def test_what_is_no_source() -> None:
    for wrong in ({"executor": 5}, {"progress": "tqdm"}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            Pipeline(square).run([1], **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="not 5"):
        Pipeline(square).run(5)  # type: ignore[arg-type]


def test_items_that_cannot_be_sent_fail_in_the_first_stage() -> None:
    items = [1, threading.Lock(), 3]
    found, refused = taken(Pipeline(square).run(items))
    assert found == [1]
    assert isinstance(refused, TypeError)
    one, error, nine = Pipeline(Stage(square, on_error="yield"), same).run(items)
    assert (one, nine) == (1, 9)
    assert isinstance(error.error, TypeError)
    with Pipeline(Stage(square, on_error="skip")).run(items) as run:
        assert list(run) == [1, 9]
    assert [error.stage for error in run.errors] == ["square"]


def test_results_that_cannot_be_sent_fail() -> None:
    first, second = Pipeline(Stage(lambda_of, on_error="yield")).run([1, 2])
    assert isinstance(first.error, TypeError)
    assert second.item == 2


@pytest.mark.parametrize("on_error", ["raise", "skip", "yield"])
def test_an_initializer_that_raises_ends_the_run(on_error: str) -> None:
    stages = Stage(square), Stage(square, workers=2, initializer=fail_to_begin, on_error=on_error)
    with pytest.raises(InitializerFailed, match="no model"):
        list(Pipeline(*stages).run(Counting()))


def test_an_initializer_that_kills_ends_the_run() -> None:
    with pytest.raises(InitializerFailed, match="exit code 7"):
        list(Pipeline(Stage(square, initializer=die_at_once, on_error="skip", retries=2)).run(range(10)))


# --- survival ---


@orders
def test_what_a_function_raises_is_tried_again(ordered: bool, tmp_path: Path) -> None:
    stage = Stage(functools.partial(raise_once, str(tmp_path)), workers=2, retries=1, ordered=ordered)
    with Pipeline(stage, Stage(same, ordered=ordered)).run(range(60)) as run:
        assert sorted(run) == list(range(60))
        first, _ = run.stats()
    assert (first.retried, first.failed, first.done) == (20, 0, 60)


def test_it_is_tried_only_so_often() -> None:
    with Pipeline(Stage(refuse_odd, retries=3, on_error="skip")).run(range(4)) as run:
        assert list(run) == [0, 2]
        (stats,) = run.stats()
    assert (stats.retried, stats.failed) == (6, 2)


@methods
def test_killed_workers_lose_nothing(tmp_path: Path, method: str) -> None:
    stage = Stage(functools.partial(die_once, str(tmp_path)), workers=2, retries=1)
    context = multiprocessing.get_context(method)
    assert list(Pipeline(stage, same, context=context).run(range(50))) == list(range(50))


@pytest.mark.parametrize("on_error", ["raise", "skip", "yield"])
def test_a_killed_worker_fails_one_item(on_error: str) -> None:
    run = Pipeline(Stage(functools.partial(die_at, 30), workers=2, on_error=on_error)).run(range(60))
    others = [x for x in range(60) if x != 30]
    if on_error == "raise":
        with pytest.raises(WorkerDied, match="SIGKILL"):
            list(run)
        return
    found = list(run)
    assert [x for x in found if not isinstance(x, StageError)] == others
    (error,) = run.errors if on_error == "skip" else [found[30]]
    assert error.item == 30
    assert isinstance(error.error, WorkerDied)


@pytest.mark.parametrize("fault", ["raises", "dies"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [10, 300])
def test_a_generator_begins_anew_and_repeats_nothing(tmp_path: Path, fault: str, workers: int, count: int) -> None:
    """With many values, all workers wait at times for an item that none of them has."""
    function = functools.partial(values_with_a_fault, str(tmp_path), fault, count)
    run = Pipeline(Stage(function, workers=workers, retries=1)).run(range(7))
    assert list(run) == [(x, i) for x in range(7) for i in range(count)]
    assert len(os.listdir(tmp_path)) == 3


def test_a_generator_begins_anew_though_all_others_never_end(tmp_path: Path) -> None:
    stage = Stage(functools.partial(first_fails_others_never_end, str(tmp_path)), workers=2, retries=1)
    with Pipeline(stage, same).run(range(6)) as run:
        want = [(0, i) for i in range(200)] + [(1, i) for i in range(500)]
        assert [next(run) for _ in want] == want
        (first, _) = run.stats()
        assert first.retried == 1


def values_in_spite_of_all(count: int, mark: str, x: int) -> Iterator[int]:
    """Now and then it raises, or dies."""
    for i in range(count):
        chance = random.random() * count * 20
        if chance < 1 and x % 45 == 0:  # rarely: starting another worker takes a while
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(DEADLINE)
        if chance < 2:
            raise OSError(f"by chance, at {mark} {i}")
        yield x


@pytest.mark.parametrize("seed", range(8))
def test_pipelines_made_by_chance(seed: int) -> None:
    """Whatever the stages are: what comes out is what should."""
    chance = random.Random(seed)
    want, stages = list(range(100)), []
    for _ in range(chance.randint(1, 3)):
        count = chance.choice([1, 2, 90]) if len(want) <= 200 else 1
        function = functools.partial(values_in_spite_of_all, count, str(seed))
        batch = chance.choice([None, 1, 5, 100])
        stages.append(Stage(function, workers=chance.randint(1, 3), batch=batch, retries=100))
        want = [x for x in want for _ in range(count)]
    ordered = chance.random() < 0.7
    found = list(Pipeline(*(replace(stage, ordered=ordered) for stage in stages)).run(range(100)))
    assert (found if ordered else sorted(found)) == want


def test_an_overdue_item_fails_and_its_worker_is_killed() -> None:
    stage = Stage(functools.partial(hang_at, 5), workers=2, task_timeout=0.3, on_error="yield")
    found = list(Pipeline(stage, same).run(range(20)))
    assert [x for x in found if not isinstance(x, StageError)] == [x for x in range(20) if x != 5]
    assert found[5].item == 5
    assert isinstance(found[5].error, TaskTimeout)


def test_many_kills_from_outside() -> None:
    with Pipeline(Stage(square, workers=2, retries=50), Stage(add_one, workers=2, retries=50)).run(range(4000)) as run:
        found = []
        for number in range(4000):
            if number % 200 == 0:
                workers = [worker for lane in run._flow._lanes for worker in lane.hands.workers]
                workers[number // 200 % len(workers)].kill()
            found.append(next(run))
    assert found == [x * x + 1 for x in range(4000)]


# --- the end ---


def ends(before: set[int]) -> None:
    wait_until(lambda: children() <= before, "all workers have ended")
    wait_until(lambda: not run_threads(), "all threads have ended")


def test_break_and_close() -> None:
    run = Pipeline(Stage(same, workers=2), same).run(Counting())
    before = children()
    for result in run:
        if result == 10:
            break
    assert children() == before  # it could go on
    assert next(run) == 11
    run.close()
    run.close()
    assert not run_threads()


def test_the_garbage_collector_ends_a_run() -> None:
    before = children()
    run = Pipeline(Stage(same, workers=2), same).run(Counting())
    assert next(run) == 0
    assert children() > before
    del run
    gc.collect()
    ends(before)


def test_the_garbage_collector_may_come_in_any_thread() -> None:
    """Even in one that holds the locks of the run."""
    before = children()
    run = Pipeline(Stage(same, workers=2), same).run(Counting())
    next(run)
    flow = run._flow
    with flow._lock:
        del run
        gc.collect()
    ends(before)


def test_an_exception_in_the_loop() -> None:
    before = children()

    def consume() -> None:
        with Pipeline(Stage(same, workers=2)).run(Counting()) as run:
            for result in run:
                if result == 10:
                    raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        consume()
    ends(before)


def test_a_source_that_blocks_holds_up_nothing() -> None:
    gone = threading.Event()

    def source() -> Iterator[int]:
        yield from range(25)
        gone.wait(DEADLINE)
        yield 25

    with Pipeline(Stage(same, workers=2), same).run(source()) as run:
        assert [next(run) for _ in range(25)] == list(range(25))
    assert list(run) == []
    gone.set()


def test_one_blocked_source_of_several() -> None:
    gone = threading.Event()

    def blocked() -> Iterator[int]:
        gone.wait(DEADLINE)
        yield -1

    with Pipeline(Stage(same, workers=2)).run(range(1000), blocked()) as run:
        assert [next(run) for _ in range(1000)] == list(range(1000))
        gone.set()
        assert list(run) == [-1]


def test_close_while_a_worker_hangs() -> None:
    run = Pipeline(Stage(functools.partial(hang_at, 3))).run(range(10))
    assert [next(run) for _ in range(3)] == [0, 1, 2]
    run.close()
    assert list(run) == []


def test_close_from_another_thread_ends_the_loop(threads: Callable[..., threading.Thread]) -> None:
    run = Pipeline(Stage(functools.partial(hang_at, 3))).run(range(10))
    found: list[int] = []
    taker = threads(lambda: found.extend(run))
    wait_until(lambda: run._flow.count == 3, "it waits for the fourth result")
    run.close()
    taker.join(DEADLINE)
    assert found == [0, 1, 2]


def test_a_run_is_taken_from_several_threads(threads: Callable[..., threading.Thread]) -> None:
    run = Pipeline(Stage(square, workers=2)).run(range(2000))
    found: list[int] = []
    takers = [threads(lambda: found.extend(run)) for _ in range(3)]
    for taker in takers:
        taker.join(DEADLINE)
    assert sorted(found) == [x * x for x in range(2000)]


def test_two_runs_at_the_same_time() -> None:
    pipeline = Pipeline(Stage(square, workers=2), add_one)
    with pipeline.run(range(500)) as one, pipeline.run(range(500, 1000)) as other:
        for x in range(500):
            assert next(one) == x * x + 1
            assert next(other) == (x + 500) ** 2 + 1


def test_a_run_as_the_source_of_another() -> None:
    first = Pipeline(Stage(square, workers=2)).run(range(500))
    assert list(Pipeline(add_one).run(first)) == [x * x + 1 for x in range(500)]


def _leave(run: Run) -> None:
    with pytest.raises(ms.Closed):
        next(run)
    run.stats()
    run.close()
    del run
    gc.collect()


def test_a_forked_child_does_nothing_to_it(processes: Processes) -> None:
    with Pipeline(Stage(same, workers=2)).run(Counting()) as run:
        assert next(run) == 0
        processes.join(processes.start(_leave, run))
        assert [next(run) for _ in range(500)] == list(range(1, 501))


def test_a_forked_child_that_exits_by_itself() -> None:
    with Pipeline(Stage(same, workers=2)).run(Counting()) as run:
        assert next(run) == 0
        with run._flow._lock:
            child = os.fork()
            if child == 0:
                del run
                gc.collect()
                os._exit(0)
        wait_until(lambda: os.waitpid(child, os.WNOHANG)[0], "the child ends")
        assert next(run) == 1


SCRIPT = """
    import itertools
    import sys
    from multisocket.pool import Pipeline, Stage

    def work(x):
        return x

    if __name__ == "__main__":
        run = Pipeline(Stage(work, workers=2), work).run(itertools.count())
        for result in run:
            if result == 1000:
                print("at work", flush=True)
                {then}
"""


def test_ctrl_c_ends_all(run_script: Callable[..., Any]) -> None:
    script = run_script(SCRIPT.format(then="continue"))
    assert script.line() == "at work"
    script.interrupt()
    code, _, errors = script.end()
    assert code in (1, -signal.SIGINT, 130)
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize("then", ["break", "sys.exit()"])
def test_the_interpreters_exit_ends_all(run_script: Callable[..., Any], then: str) -> None:
    code, _, errors = run_script(SCRIPT.format(then=then)).end()
    assert (code, errors) == (0, "")


def test_the_parents_death_ends_all(run_script: Callable[..., Any]) -> None:
    script = run_script(SCRIPT.format(then="continue"))
    assert script.line() == "at work"
    script.process.kill()
    script.end()


# --- statistics ---


def test_statistics(gate: Gate) -> None:
    stages = Stage(same, name="first"), Stage(functools.partial(await_first, gate.path), workers=2, name="second")
    with Pipeline(*stages).run(range(10)) as run:
        wait_until(lambda: run.stats()[1].done == 9, "all but the first item are done")
        first, second = run.stats()
        assert (first.received, first.done, first.failed, first.retried, first.queued) == (10, 10, 0, 0, 0)
        assert (second.received, second.done, second.queued, second.ready) == (10, 9, 1, 9)
        gate.open()
        assert list(run) == list(range(10))
    assert [stats.name for stats in run.stats()] == ["first", "second"]
    assert all(isinstance(stats, StageStats) and stats.rate > 0 for stats in run.stats())


def burn(milliseconds: int, x: int) -> int:
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        pass
    return x


@pytest.mark.parametrize("at", [0, 1, 50, 59])
def test_short_items_do_not_wait_for_a_long_one(gate: Gate, at: int) -> None:
    """However short they are, and however few: one worker is idle."""
    stages = Stage(same), Stage(functools.partial(await_first, gate.path), workers=2, ordered=False)
    with Pipeline(*stages).run([*range(1, at + 1), 0, *range(at + 1, 60)]) as run:
        assert sorted(next(run) for _ in range(59)) == list(range(1, 60))
        gate.open()
        assert list(run) == [0]


def test_the_bottleneck_is_the_busiest() -> None:
    stages = [Stage(same, name="a"), Stage(functools.partial(burn, 10), name="b"), Stage(same, name="c")]
    with Pipeline(*stages).run(range(50)) as run:
        list(run)
    shares = {stats.name: stats.busy for stats in run.stats()}
    assert max(shares, key=lambda name: shares[name]) == "b"
    assert 0 < shares["b"] <= 1  # of all the time, also that which workers take to start


PROGRESS = """
    import sys
    from multisocket.pool import Pipeline, Stage

    for name in sys.argv[1:]:
        sys.modules[name] = None

    def work(x):
        return x

    if __name__ == "__main__":
        print(len(list(Pipeline(Stage(work, name="stage one")).run(range(100), progress=True))))
"""


@pytest.mark.parametrize(
    ("missing", "shown"),
    [((), "100 done"), (("rich",), "100/100"), (("rich", "tqdm"), "100 of 100 items, 100 results")],
)
def test_progress(run_script: Callable[..., Any], missing: tuple[str, ...], shown: str) -> None:
    if "rich" not in missing:
        pytest.importorskip("rich")
    if "tqdm" not in missing:
        pytest.importorskip("tqdm")
    code, out, errors = run_script(PROGRESS, *missing).end()
    assert (code, out) == (0, "100")
    assert shown in errors
    assert "stage one" in errors
    assert "Traceback" not in errors


def test_a_display_of_ones_own() -> None:
    class Shown:
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def __enter__(self) -> Shown:
            return self

        def __exit__(self, *error: object) -> None:
            self.seen.append((-1, -1))

        def update(self, results: int, stages: list[StageStats]) -> None:
            self.seen.append((results, stages[0].done))

    shown = Shown()
    assert len(list(Pipeline(same).run(range(30), progress=shown))) == 30
    assert shown.seen[-2:] == [(30, 30), (-1, -1)]


# --- other executors ---

EXECUTORS: dict[str, Callable[[], BaseExecutor]] = {
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")),
    "ours": lambda: Executor(2),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[BaseExecutor]:
    with EXECUTORS[request.param]() as made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_the_same_on_any_executor(executor: BaseExecutor) -> None:
    pipeline = Pipeline(Stage(square, workers=2), Stage(none_or_many, workers=2), Stage(same, ordered=False))
    assert sorted(pipeline.run(range(500), executor=executor)) == sorted(pipeline.run(range(500)))
    ordered = Pipeline(Stage(refuse_odd, workers=2, on_error="yield"), Stage(square, workers=2))
    here, there = list(ordered.run(range(50))), list(ordered.run(range(50), executor=executor))
    assert [str(result) for result in here] == [str(result) for result in there]
    assert [x.item for x in there if isinstance(x, StageError)] == list(range(1, 50, 2))


def test_short_items_do_not_wait_for_a_long_one_elsewhere(executor: BaseExecutor, gate: Gate) -> None:
    stages = Stage(same), Stage(functools.partial(await_first, gate.path), workers=2, ordered=False)
    with Pipeline(*stages).run(range(60), executor=executor) as run:
        assert sorted(next(run) for _ in range(59)) == list(range(1, 60))
        gate.open()
        assert list(run) == [0]


def test_errors_on_any_executor(executor: BaseExecutor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not 20") as raised:
        list(Pipeline(functools.partial(refuse, 20), square).run(range(50), executor=executor))
    assert "in refuse" in str(raised.value.__cause__)
    stage = Stage(functools.partial(raise_once, str(tmp_path)), workers=2, retries=1)
    with Pipeline(stage).run(range(30), executor=executor) as run:
        assert list(run) == list(range(30))
        assert run.stats()[0].retried == 10


def test_arrays_on_any_executor(executor: BaseExecutor) -> None:
    for number, array in enumerate(Pipeline(array_of, add_in_place).run(range(10), executor=executor)):
        array += 1
        assert (array == number + 2).all()


def identified(mark: str, x: int) -> tuple[int, int]:
    return os.getpid(), sum(name == mark for name in marks)


marks: list[str] = []


def test_an_initializer_is_called_once_in_each_process(executor: BaseExecutor, tmp_path: Path) -> None:
    mark = tmp_path.name
    stage = Stage(functools.partial(identified, mark), workers=4, initializer=add_mark, initargs=(mark,), batch=1)
    found = list(Pipeline(stage).run(range(100), executor=executor))
    assert {count for _, count in found} == {1}


def add_mark(mark: str) -> None:
    marks.append(mark)


def test_an_initializer_that_raises_elsewhere(executor: BaseExecutor) -> None:
    stage = Stage(square, workers=2, initializer=fail_to_begin, on_error="skip")
    with pytest.raises(InitializerFailed, match="no model"):
        list(Pipeline(stage).run(Counting(), executor=executor))
    assert executor.submit(square, 3).result(DEADLINE) == 9


def test_lambdas_on_any_executor(executor: BaseExecutor) -> None:
    pytest.importorskip("cloudpickle")
    offset = 5
    assert list(Pipeline(lambda x: x + offset).run(range(10), executor=executor)) == list(range(5, 15))


def test_an_early_end_leaves_the_executor(executor: BaseExecutor) -> None:
    with Pipeline(Stage(square, workers=2), same).run(Counting(), executor=executor) as run:
        assert [next(run) for _ in range(10)] == [x * x for x in range(10)]
    assert executor.submit(square, 5).result(DEADLINE) == 25


def test_an_executor_that_is_shut_down() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(Terminated, match="shutdown"):
        list(Pipeline(Stage(square, on_error="skip")).run(Counting(), executor=executor))


def test_a_process_pool_that_breaks() -> None:
    """One of its workers dies: then it does nothing more for anybody."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as executor:
        stage = Stage(functools.partial(die_at, 30), on_error="skip", retries=2)
        with pytest.raises(Terminated, match="BrokenProcessPool"):
            list(Pipeline(stage).run(Counting(), executor=executor))


def test_our_executor_survives_what_kills_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Of a batch only the item that kills fails."""
    with Executor(2) as executor:
        stage = Stage(functools.partial(die_at, 70), workers=2, on_error="skip", batch=20)
        with Pipeline(stage).run(range(200), executor=executor) as run:
            assert list(run) == [x for x in range(200) if x != 70]
        (error,) = run.errors
    assert error.item == 70
    assert isinstance(error.error, WorkerDied)


class Watched(BaseExecutor):
    """Does nothing by itself; knows what it was given."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, functools.partial(fn, *args, **kwargs)))
        self.most = max(self.most, len(self.waiting))
        return future

    def work(self) -> list[Any]:
        """Does one batch."""
        wait_until(lambda: self.waiting, "there is something to do")
        future, call = self.waiting.pop(0)
        future.set_running_or_notify_cancel()
        outcomes: list[Any] = call()
        future.set_result(outcomes)
        return outcomes


def test_only_so_many_futures_are_outstanding() -> None:
    executor, source = Watched(), Counting()
    with Pipeline(Stage(same, workers=3, batch=1)).run(source, executor=executor) as run:
        for number in range(50):
            executor.work()
            assert next(run) == number
        settled(lambda: source.given)
        assert executor.most <= 6
        assert source.given < 100
    assert all(future.cancelled() for future, _ in executor.waiting)


def test_batches_of_a_size_for_an_executor() -> None:
    executor = Watched()
    with Pipeline(Stage(same, batch=5)).run(range(100), executor=executor) as run:
        sizes: list[int] = []
        while sum(sizes) < 100:
            sizes.append(len(executor.work()))
            assert len(list(itertools.islice(run, sizes[-1]))) == sizes[-1]
    assert max(sizes) == 5
    assert len(sizes) < 50


class AtOnce(BaseExecutor):
    """Does everything in submit."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_that_works_at_once() -> None:
    run = Pipeline(Stage(square, batch=1), Stage(same, batch=1)).run(range(3000), executor=AtOnce())
    assert list(run) == [x * x for x in range(3000)]


def test_statistics_of_an_executor(pool: ThreadPoolExecutor) -> None:
    with Pipeline(Stage(same, name="a"), Stage(functools.partial(burn, 2), name="b")).run(
        range(50), executor=pool
    ) as run:
        list(run)
    a, b = run.stats()
    assert (a.done, b.done) == (50, 50)
    assert a.busy < b.busy <= 1.0


def test_the_garbage_collector_ends_a_run_on_an_executor(pool: ThreadPoolExecutor) -> None:
    run = Pipeline(Stage(same, workers=2)).run(Counting(), executor=pool)
    next(run)
    del run
    gc.collect()
    wait_until(lambda: not run_threads(), "all threads have ended")


def test_progress_of_an_executor(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(list(Pipeline(same).run(iter(range(30)), executor=pool, progress=True))) == 30
    assert "30 items, 30 results" in capsys.readouterr().err
