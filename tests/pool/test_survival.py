"""Workers that die, in all ways and at all times: only what they were doing is lost, and nobody hangs."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.pool import Executor, InitializerFailed, Pool, TaskTimeout, Terminated, WorkerDied

from .jobs import (
    Refused,
    Unpicklable,
    Unsendable,
    await_others,
    count_and_sleep,
    die_at_first,
    die_of,
    die_unless_first,
    exit_with,
    fork_and_die,
    hold_the_gil,
    kill_self,
    nap,
    note,
    refuse,
    sleep_if,
    square,
    stop_self,
    wait_if,
)

Make = Callable[..., Any]
methods = pytest.mark.parametrize("method", START_METHODS)


def living(pool: Pool | Executor) -> list[Any]:
    return [worker for worker in pool.workers if worker.is_alive()]


def await_refill(pool: Pool | Executor, size: int) -> None:
    wait_until(lambda: len(living(pool)) == size, "all workers are there again")


# --- one dies ---

DEATHS = [
    (kill_self, int(signal.SIGKILL), "was killed by SIGKILL", -signal.SIGKILL),
    (kill_self, int(signal.SIGSEGV), "was killed by SIGSEGV", -signal.SIGSEGV),
    (kill_self, int(signal.SIGTERM), "was killed by SIGTERM", -signal.SIGTERM),
    (exit_with, 3, "ended with exit code 3", 3),
    (exit_with, 0, "ended with exit code 0", 0),
]


@methods
@pytest.mark.parametrize(("die", "how", "told", "code"), DEATHS)
def test_a_death_fails_only_its_task(
    make_pool: Make, method: str, die: Callable[[int], None], how: int, told: str, code: int
) -> None:
    pool = make_pool(2, method=method)
    before = [pool.apply_async(square, (i,)) for i in range(50)]
    lost = pool.apply_async(die, (how,))
    after = [pool.apply_async(square, (i,)) for i in range(50)]
    with pytest.raises(WorkerDied, match=f"{told}.* while it ran {die.__name__} of {re.escape(repr(how))}") as raised:
        lost.get(DEADLINE)
    assert isinstance(raised.value, BrokenExecutor)
    assert raised.value.exitcode == code
    assert [one.get(DEADLINE) for one in before + after] == [i * i for i in range(50)] * 2
    await_refill(pool, 2)
    assert pool.map(square, range(100)) == [i * i for i in range(100)]


@methods
def test_an_executor_goes_on_after_deaths(make_executor: Make, method: str) -> None:
    executor = make_executor(2, method=method)
    for _ in range(3):
        futures = [executor.submit(square, i) for i in range(20)]
        lost = executor.submit(kill_self, signal.SIGKILL)
        assert isinstance(lost.exception(DEADLINE), WorkerDied)
        assert [future.result(DEADLINE) for future in futures] == [i * i for i in range(20)]
    await_refill(executor, 2)


def test_sys_exit_in_a_task_is_its_outcome(make_executor: Make) -> None:
    """As ProcessPoolExecutor has it."""
    executor = make_executor(1)
    worker = executor.submit(os.getpid).result(DEADLINE)
    assert isinstance(executor.submit(sys.exit, 3).exception(DEADLINE), SystemExit)
    assert executor.submit(os.getpid).result(DEADLINE) == worker


def test_a_death_is_noticed_although_a_grandchild_lives(make_pool: Make, tmp_path: Path) -> None:
    """It has inherited the pipe by whose end multiprocessing notices that."""
    pool = make_pool(1)
    noted = tmp_path / "grandchild"
    try:
        with pytest.raises(WorkerDied):
            pool.apply_async(fork_and_die, (str(noted),)).get(DEADLINE)
        assert pool.apply(square, (3,)) == 9
    finally:
        os.kill(int(noted.read_text()), signal.SIGKILL)


# --- doing it again ---


WAYS: dict[str, Callable[[Pool, Callable[[int], int], Sequence[int]], list[int]]] = {
    "apply": lambda pool, function, items: [pool.apply_async(function, (i,)).get(DEADLINE) for i in items],
    "map": lambda pool, function, items: pool.map_async(function, items).get(DEADLINE),
    "imap": lambda pool, function, items: list(pool.imap(function, items)),
    "imap in chunks": lambda pool, function, items: list(pool.imap(function, items, 2)),
    "imap_unordered": lambda pool, function, items: sorted(pool.imap_unordered(function, items)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_task_is_done_again(make_pool: Make, tmp_path: Path, way: str) -> None:
    pool = make_pool(2, retries=2)
    function = functools.partial(die_at_first, str(tmp_path / "calls"), 2)
    assert WAYS[way](pool, function, [1, 2, 3]) == [1, 4, 9]


def test_a_task_is_done_again_only_so_often(make_executor: Make, tmp_path: Path) -> None:
    executor = make_executor(2, retries=2)
    calls = tmp_path / "calls"
    lost = executor.submit(die_at_first, str(calls), 1000, 1)
    assert isinstance(lost.exception(DEADLINE), WorkerDied)
    assert calls.stat().st_size == 3
    assert executor.submit(square, 2).result(DEADLINE) == 4


def test_the_last_task_of_a_closed_pool_is_done_again(make_pool: Make, tmp_path: Path) -> None:
    for number in range(5):
        pool = make_pool(1, retries=1)
        result = pool.apply_async(die_at_first, (str(tmp_path / str(number)), 1, 3))
        pool.close()
        assert result.get(DEADLINE) == 9
        pool.join()


# --- in the middle of a batch ---


def _submit_all(function: Callable[[int], int], numbers: range, executor: Executor) -> list[Any]:
    futures = [executor.submit(function, i) for i in numbers]
    return [future.exception(DEADLINE) or future.result() for future in futures]


@methods
def test_only_one_task_of_a_batch_is_lost(make_executor: Make, tmp_path: Path, method: str) -> None:
    executor = make_executor(2, method=method)
    path = tmp_path / "done"
    function = functools.partial(note, str(path), 700)
    executor._crew._batch = 30
    assert _submit_all(function, range(500), executor) == list(range(500))
    results = _submit_all(function, range(500, 1000), executor)
    assert [i for i, result in zip(range(500, 1000), results, strict=True) if result != i] == [700]
    assert isinstance(results[200], WorkerDied)
    assert "note" in str(results[200])
    assert Counter(map(int, path.read_text().split())) == Counter(range(1000))


def test_only_one_item_of_an_imap_is_lost(make_pool: Make, tmp_path: Path) -> None:
    pool = make_pool(2)
    pool._crew._batch = 30
    path = tmp_path / "done"
    results: list[Any] = []
    iterator = pool.imap(functools.partial(note, str(path), 700), range(1000))
    for i in range(1000):
        try:
            results.append(iterator.next(DEADLINE))
        except WorkerDied:
            results.append(None)
            assert i == 700
    assert results == [*range(700), None, *range(701, 1000)]
    assert Counter(map(int, path.read_text().split())) == Counter(range(1000))


# --- time limits ---


@methods
@pytest.mark.parametrize("task", [functools.partial(time.sleep, 2 * DEADLINE), hold_the_gil], ids=["sleeps", "holds"])
def test_an_overdue_task_is_killed(make_executor: Make, method: str, task: Callable[[], None]) -> None:
    executor = make_executor(2, method=method, task_timeout=0.3)
    overdue = executor.submit(task)
    others = [executor.submit(square, i) for i in range(100)]
    with pytest.raises(TaskTimeout, match="task_timeout"):
        overdue.result(DEADLINE)
    assert [one.result(DEADLINE) for one in others] == [i * i for i in range(100)]
    await_refill(executor, 2)


def test_an_overdue_task_of_a_batch_is_killed_alone(make_executor: Make) -> None:
    executor = make_executor(2, task_timeout=0.3)
    executor._crew._batch = 30
    function = functools.partial(sleep_if, 700)
    assert _submit_all(function, range(500), executor) == list(range(500))
    results = _submit_all(function, range(500, 1000), executor)
    assert [i for i, result in zip(range(500, 1000), results, strict=True) if result != i] == [700]
    assert isinstance(results[200], TaskTimeout)


def test_an_overdue_task_is_not_done_again(make_pool: Make, tmp_path: Path) -> None:
    pool = make_pool(1, task_timeout=0.2, retries=3)
    calls = tmp_path / "calls"
    with pytest.raises(TaskTimeout):
        pool.apply_async(count_and_sleep, (str(calls),)).get(DEADLINE)
    assert calls.stat().st_size == 1


# --- those that cannot start ---


@methods
@pytest.mark.parametrize("kind", [Refused, Unsendable])
def test_an_initializer_that_raises_is_told(make_executor: Make, method: str, kind: type[Exception]) -> None:
    executor = make_executor(2, method=method, initializer=refuse, initargs=(kind,))
    with pytest.raises(InitializerFailed, match="not today") as raised:
        executor.submit(square, 1).result(DEADLINE)
    assert isinstance(raised.value.__cause__, Refused if kind is Refused else RuntimeError)
    assert "in refuse" in str(raised.value.__cause__.__cause__), "the worker's traceback"
    with pytest.raises(InitializerFailed):
        executor.submit(square, 1)


@methods
def test_an_initializer_that_kills_its_worker_is_told(make_pool: Make, method: str) -> None:
    pool = make_pool(2, method=method, initializer=exit_with, initargs=(9,))
    with contextlib.suppress(InitializerFailed, ValueError), pytest.raises(InitializerFailed, match="exit code 9"):
        pool.apply_async(square, (1,)).get(DEADLINE)
    wait_until(lambda: isinstance(pool._crew.broken, InitializerFailed), "it is given up")


def test_what_cannot_be_given_to_a_worker_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        Pool(1, initializer=square, initargs=(Unpicklable(),), context=multiprocessing.get_context("spawn"))
    (pool,) = [
        frame.f_locals["self"] for frame, _ in walk_tb(caught.tb) if isinstance(frame.f_locals.get("self"), Pool)
    ]
    assert "state=TERMINATE" in repr(pool)  # though the error's traceback still has it


def test_a_submit_that_cannot_start_workers_leaves_nothing(make_executor: Make) -> None:
    executor = make_executor(1, method="spawn", initializer=square, initargs=(Unpicklable(),))
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(square, 1)
    executor.shutdown()
    assert executor.stats()["waiting"] == 0


def test_workers_that_cannot_be_forked_are_forked_later(make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(2)
    failures = iter([True] * 3 + [False] * 1000)
    start = pool._crew._context.Process.start

    def start_or_fail(process: Any) -> None:
        if next(failures):
            raise BlockingIOError("no process is left")
        start(process)

    monkeypatch.setattr(pool._crew._context.Process, "start", start_or_fail)
    with pytest.raises(WorkerDied):
        pool.apply_async(exit_with, (1,)).get(DEADLINE)
    with pytest.raises(WorkerDied):
        pool.apply_async(exit_with, (1,)).get(DEADLINE)
    assert pool.apply_async(square, (4,)).get(DEADLINE) == 16
    await_refill(pool, 2)


# --- many die ---


def kill_all(pool: Pool | Executor) -> None:
    for worker in living(pool):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


@methods
def test_all_die_at_once_again_and_again(make_pool: Make, method: str) -> None:
    pool = make_pool(3, method=method, retries=100)
    results = [pool.apply_async(nap, (i,)) for i in range(60)]
    for _ in range(6):
        await_refill(pool, 3)
        kill_all(pool)
    assert [one.get(DEADLINE) for one in results] == list(range(60))
    await_refill(pool, 3)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_some_die_while_they_start(make_pool: Make, method: str) -> None:
    pool = make_pool(2, method=method)
    result = pool.apply_async(square, (5,))
    for _ in range(2):
        kill_all(pool)
        await_refill(pool, 2)
    assert result.get(DEADLINE) == 25 or not result.successful()
    assert pool.map(square, range(10)) == [i * i for i in range(10)]


class Killer:
    """Kills workers at random, while others make progress."""

    def __init__(self, pool: Pool | Executor, kills: int) -> None:
        self.killed = 0
        self._pool = pool
        self._kills = kills
        self._thread = threading.Thread(target=self._run)
        self._random = random.Random(42)
        self._is_wanted = threading.Event()

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kills = 0
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        crew = self._pool._crew
        while self.killed < self._kills:
            # Of those that never get as far as that, not many in a row are replaced.
            workers = [hand.process for slot, hand in list(crew._hands.items()) if crew._board.is_ready(slot)]
            if len(workers) < 2:
                time.sleep(0.0005)
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(workers).pid, signal.SIGKILL)
            self.killed += 1
            time.sleep(self._random.random() * 0.004)

    def paced(self, n: int) -> Iterator[int]:
        """Numbers, as fast as there are deaths."""
        for i in range(n):
            if i * self._kills > (self.killed + 5) * n:
                wait_until(lambda i=i: i * self._kills <= (self.killed + 5) * n, "workers die")  # type: ignore[misc]
            yield i


def _submitted(executor: Executor, numbers: Iterator[int]) -> list[int]:
    return [future.result(DEADLINE) for future in [executor.submit(square, i) for i in numbers]]


def test_five_hundred_deaths_in_twenty_thousand_tasks(make_pool: Make) -> None:
    pool = make_pool(4, retries=3)
    with Killer(pool, 500) as killer:
        results = list(pool.imap_unordered(square, killer.paced(20000)))
    assert sorted(results) == [i * i for i in range(20000)]
    assert killer.killed > 490
    await_refill(pool, 4)


@methods
def test_deaths_while_tasks_are_submitted(make_executor: Make, method: str) -> None:
    executor = make_executor(4, method=method, retries=3)
    kills = 150 if method == "fork" else 40
    with Killer(executor, kills) as killer:
        assert _submitted(executor, killer.paced(4000)) == [i * i for i in range(4000)]
    assert killer.killed > kills - 10


def test_threads_submit_while_workers_die(make_executor: Make, threads: Make) -> None:
    executor = make_executor(3, retries=3)
    rights: list[bool] = []

    def submit_many(numbers: Iterator[int], n: int) -> None:
        rights.append(_submitted(executor, numbers) == [i * i for i in range(n)])

    with Killer(executor, 60) as killer:
        running = [threads(submit_many, killer.paced(1500), 1500) for _ in range(4)]
        for thread in running:
            thread.join(DEADLINE)
    assert rights == [True] * 4


def test_callbacks_submit_again_while_workers_die(make_executor: Make) -> None:
    executor = make_executor(3, retries=3)
    ended = threading.Semaphore(0)
    seen: list[int] = []

    def go_on(left: int, future: Future[int]) -> None:
        seen.append(future.result())
        if not left:
            ended.release()
            return
        executor.submit(square, left).add_done_callback(functools.partial(go_on, left - 1))

    with Killer(executor, 30):
        for _ in range(5):
            executor.submit(square, 100).add_done_callback(functools.partial(go_on, 99))
        for _ in range(5):
            assert ended.acquire(timeout=DEADLINE)
    assert Counter(seen) == Counter([i * i for i in range(1, 101)] * 5)


# --- those that stand still ---


def test_others_go_on_while_one_is_stopped(make_pool: Make) -> None:
    pool = make_pool(2)
    stopped = pool.apply_async(stop_self)
    assert pool.map_async(square, range(1000)).get(DEADLINE) == [i * i for i in range(1000)]
    assert list(pool.imap_unordered(abs, range(-500, 0))) != []
    assert not stopped.ready()
    for worker in pool.workers:
        os.kill(worker.pid, signal.SIGCONT)
    assert stopped.get(DEADLINE) in {worker.pid for worker in pool.workers}


def test_a_pool_with_a_stopped_worker_can_be_terminated(make_pool: Make) -> None:
    pool = make_pool(2)
    stopped = pool.apply_async(stop_self)
    wait_until(lambda: any(_is_stopped(worker.pid) for worker in pool.workers), "it stands still")
    pool.terminate()
    with pytest.raises(Terminated):
        stopped.get(DEADLINE)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_what_a_blocked_worker_has_not_begun_is_done_by_others(make_executor: Make, tmp_path: Path) -> None:
    """All tasks of a batch but the one that is running."""
    executor = make_executor(2)
    executor._crew._batch = 30
    gate = tmp_path / "gate"
    function = functools.partial(wait_if, str(gate), 700)
    assert _submit_all(function, range(700), executor) == list(range(700))
    futures = [executor.submit(function, i) for i in range(700, 1400)]
    wait(futures[1:], DEADLINE)
    assert [future.done() for future in futures] == [False] + [True] * 699
    gate.touch()
    assert futures[0].result(DEADLINE) == 700


@pytest.mark.parametrize("way", ["imap", "map", "imap_unordered"])
def test_no_worker_is_idle_while_another_has_more_than_it_can_do(make_pool: Make, tmp_path: Path, way: str) -> None:
    """The first item blocks until all others are done, so they must be done by the other worker."""
    pool = make_pool(2)
    pool.map(square, range(2000))
    done = tmp_path / "done"
    function = functools.partial(await_others, str(done), 200)
    results = WAYS[way](pool, function, range(200))
    assert sorted(results) == list(range(200))


# --- the end at odd times ---


def test_terminate_from_a_callback(make_pool: Make) -> None:
    pool = make_pool(2)
    called = threading.Event()

    def end(_: object) -> None:
        pool.terminate()
        called.set()

    pool.apply_async(square, (1,), callback=end)
    assert called.wait(DEADLINE)
    pool.join()
    assert pool.workers == []


def test_a_callback_that_exits_ends_nothing(make_executor: Make) -> None:
    executor = make_executor(1)
    executor.submit(square, 1).add_done_callback(lambda _: sys.exit(1))
    assert executor.submit(square, 2).result(DEADLINE) == 4


@methods
def test_close_while_workers_start(make_executor: Make, method: str) -> None:
    executor = make_executor(3, method=method)
    futures = [executor.submit(square, i) for i in range(10)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [i * i for i in range(10)]


@methods
def test_terminate_while_workers_start(make_pool: Make, method: str) -> None:
    pool = make_pool(3, method=method)
    result = pool.apply_async(square, (1,))
    pool.terminate()
    with contextlib.suppress(Terminated):
        result.get(DEADLINE)
    assert result.ready()


def test_terminate_while_another_thread_waits_for_the_end(make_pool: Make, threads: Make) -> None:
    pool = make_pool(1)
    result = pool.apply_async(time.sleep, (2 * DEADLINE,))
    pool.close()
    joining = threads(pool.join)
    pool.terminate()
    joining.join(DEADLINE)
    with pytest.raises(Terminated):
        result.get(DEADLINE)


def _use_in_child(pool: Pool, refused: Any) -> None:
    try:
        pool.apply_async(square, (1,))
    except ms.NotSupported:
        refused.set()


def test_a_forked_child_is_refused(make_pool: Make, processes: Processes) -> None:
    pool = make_pool(1)
    refused = multiprocessing.get_context("fork").Event()
    processes.join(processes.start(_use_in_child, pool, refused))
    assert refused.is_set()
    assert pool.apply(square, (2,)) == 4


# --- the parent's end ---

PARENT = """
    import multiprocessing, os, sys, time
    from pool import jobs
    from multisocket.pool import Pool

    if __name__ == "__main__":
        pool = Pool(2, context=multiprocessing.get_context(sys.argv[1]))
        pool.map(jobs.square, range(10))
        pool.apply_async(time.sleep, (1000,))
        pool.apply_async(jobs.hold_the_gil)
        jobs.wait_for(lambda: pool.stats()["given"] == 2)
        print("go", flush=True)
        time.sleep(1000)
"""


@methods
def test_workers_end_with_their_parent(run_script: Make, method: str) -> None:
    """Even one that holds the GIL."""
    script = run_script(PARENT, method)
    assert script.line() == "go"
    script.process.kill()
    script.end()


INTERRUPTED = {
    "map": "Pool(2, context=context).map(time.sleep, [1000] * 4)",
    "with Pool": "with Pool(2, context=context) as pool: list(pool.imap(time.sleep, [1000] * 4))",
    "with Executor": "with Executor(2, context) as executor: executor.submit(time.sleep, 1000).result()",
    "map of an Executor": "with Executor(2, context) as executor: list(executor.map(time.sleep, [1000] * 4))",
    "submit": "with Executor(2, context) as executor: [executor.submit(abs, 1).result() for _ in iter(int, 1)]",
}


@methods
@pytest.mark.parametrize("what", INTERRUPTED)
def test_ctrl_c_ends_all_without_a_word_from_workers(run_script: Make, method: str, what: str) -> None:
    script = run_script(
        f"""
        import multiprocessing, sys, threading, time
        from multisocket.pool import Executor, Pool

        def tell():
            time.sleep(0.2)
            print("go", flush=True)

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            threading.Thread(target=tell, daemon=True).start()
            {INTERRUPTED[what]}
        """,
        method,
    )
    assert script.line() == "go"
    script.interrupt()
    code, _, errors = script.end()
    assert code == -signal.SIGINT
    assert "Process multisocket-worker" not in errors
    if method == "forkserver":  # that server itself, and what it starts, may be interrupted too early
        return
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt\n") == 1, errors


ENDS = {
    "forgets to close": ("Pool(2).map(abs, range(10))", 0),
    "keeps it": ("kept = Pool(2); kept.map(abs, range(10)); kept.apply_async(time.sleep, (1000,))", 0),
    "exits within": ("with Pool(2) as pool: pool.apply_async(time.sleep, (1000,)); sys.exit(7)", 7),
    "exits after": ("kept = Pool(2); kept.apply_async(time.sleep, (1000,)); sys.exit(7)", 7),
    "exits within an executor": ("with Executor(2) as kept: kept.submit(abs, 1); sys.exit(7)", 7),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_script_ends_as_it_wants(run_script: Make, how: str) -> None:
    text, expected = ENDS[how]
    script = run_script(
        f"""
        import sys, time
        from multisocket.pool import Executor, Pool

        if __name__ == "__main__":
            {text}
        """
    )
    assert script.end() == (expected, "", "")


@methods
def test_an_executor_finishes_at_exit(run_script: Make, method: str) -> None:
    script = run_script(
        """
        import multiprocessing, sys, time
        from multisocket.pool import Executor

        if __name__ == "__main__":
            executor = Executor(2, multiprocessing.get_context(sys.argv[1]))
            for i in range(20):
                executor.submit(time.sleep, 0.01).add_done_callback(lambda future: print(future.result()))
        """,
        method,
    )
    assert script.end() == (0, "\n".join(["None"] * 20), "")


@pytest.mark.parametrize("way", ["apply", "map", "imap"])
def test_a_task_that_exits_does_not_end_who_waits_for_it(make_pool: Make, way: str) -> None:
    pool = make_pool(1)
    with pytest.raises(WorkerDied, match="a task raised SystemExit: 7") as raised:
        list(getattr(pool, way)(sys.exit, [7]))
    assert isinstance(raised.value.__cause__, SystemExit)
    assert pool.apply(abs, (-1,)) == 1


def test_arrays_that_live_to_the_end_say_nothing(run_script: Make) -> None:
    """And the background thread has no socket left open."""
    script = run_script(
        """
        import warnings
        warnings.simplefilter("default")
        import numpy
        from multisocket.pool import Executor
        executor = Executor(1)
        kept = executor.submit(numpy.zeros, 1_000_000).result()
        executor.shutdown()
        """
    )
    assert script.end() == (0, "", "")


def test_a_lost_task_is_named_by_its_arguments_types(make_pool: Make) -> None:
    with pytest.raises(WorkerDied, match=r"die_of of \[<PosixPath>, 'x'\]"):
        make_pool(1).apply(die_of, ([Path("/"), "x"],))


def test_cancelled_futures_are_not_lost_with_a_dead_worker(make_executor: Make) -> None:
    """Tasks that were given out once cannot be cancelled: they are done."""
    executor = make_executor(1)
    assert executor.submit(abs, -1).result(DEADLINE) == 1
    wait([executor.submit(abs, i) for i in range(500)], DEADLINE)  # so batches are large
    slow = executor.submit(time.sleep, 0.3)
    futures = [executor.submit(abs, i) for i in range(300)]
    wait_until(slow.running, "it is on its way")
    os.kill(executor.workers[0].pid, signal.SIGKILL)
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(future.done() for future in [slow, *futures])
    assert all(future.cancelled() or future.result() == i for i, future in enumerate(futures))


@pytest.mark.parametrize("kind", ["Pool", "Executor"])
def test_a_child_that_leaves_the_block_waits_for_nobody(processes: Processes, kind: str) -> None:
    code = f"""
import os
from multisocket.pool import Executor, Pool
with {kind}(1) as pool:
    assert list(pool.map(abs, [-1])) == [1]
    child = os.fork()
    if not child:
        raise SystemExit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert list(pool.map(abs, [-1])) == [1]
"""
    process = processes.run(code)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors


def test_an_initializer_that_only_one_worker_survives(make_pool: Make, tmp_path: Path) -> None:
    """The others are not started over and over, and what is to be done is done."""
    pool = make_pool(2, initializer=die_unless_first, initargs=(str(tmp_path / "first"),))
    wait_until(lambda: len(pool.workers) == 1, "the others are given a rest")
    assert pool.map(square, range(100)) == [i * i for i in range(100)]
