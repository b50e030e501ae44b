"""joblib's ``Parallel`` on our workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import DEADLINE, START_METHODS, names_in_shm, wait_until
from multisocket import names
from multisocket.pool import WorkerDied
from multisocket.pool.repeated import Repeated

joblib = pytest.importorskip("joblib")

from joblib import Parallel, delayed, parallel_config  # noqa: E402

import multisocket.pool.joblib as backend  # noqa: E402

NAME = backend.NAME
VERSION = tuple(map(int, joblib.__version__.split(".")[:2]))


@pytest.fixture(autouse=True)
def shuts_down() -> Iterator[None]:
    yield
    backend.shutdown()


def square(x: int) -> int:
    return x * x


def total(x: int, *more: int, times: int = 1) -> int:
    return (x + sum(more)) * times


def fail_at(x: int, where: int) -> int:
    if x == where:
        raise ValueError(f"no {x}")
    return x


def float_at(array: Any, index: int) -> float:
    return float(array[index])


def pid_of(_: object) -> int:
    return os.getpid()


def process_and_thread(_: object) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def kill_self(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_once(x: int, marker: str) -> int:
    if x == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def sleep_for_ever(x: int, folder: str) -> None:
    Path(folder, str(x)).touch()
    time.sleep(DEADLINE)


def parallel(**options: Any) -> Any:
    return Parallel(**{"n_jobs": 2, "backend": NAME, **options})


# --- results ---


@pytest.mark.parametrize("number", [0, 1, 3, 50, 5000])
def test_results_are_in_order(number: int) -> None:
    assert parallel()(delayed(square)(i) for i in range(number)) == [i * i for i in range(number)]


def test_it_is_chosen_for_a_block() -> None:
    with parallel_config(NAME, n_jobs=2):
        pids = set(Parallel()(delayed(pid_of)(i) for i in range(200)))
    assert os.getpid() not in pids
    assert len(pids) <= 2


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
@pytest.mark.parametrize("pre_dispatch", ["all", 1, "3 * n_jobs"])
def test_batches(batch_size: Any, pre_dispatch: Any) -> None:
    run = parallel(batch_size=batch_size, pre_dispatch=pre_dispatch)
    assert run(delayed(square)(i) for i in range(100)) == [i * i for i in range(100)]


def test_all_kinds_of_calls_in_one_batch() -> None:
    calls = [
        delayed(square)(2),
        delayed(total)(1, 2, 3),
        delayed(total)(1, times=3),
        delayed(lambda x: x + 1)(4),
        delayed("a-b".split)("-"),
        delayed(max)(3, 9),
    ]
    expected = [4, 6, 3, 5, ["a", "b"], 9]
    assert parallel(batch_size=6)(calls) == expected
    assert parallel(batch_size=1)(calls) == expected


def test_lambdas_and_closures() -> None:
    offset = 5
    assert parallel()(delayed(lambda x: x + offset)(i) for i in range(100)) == [i + 5 for i in range(100)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_start_methods(method: str) -> None:
    with parallel_config(NAME, context=method):
        assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]


def test_all_processors_are_used_when_asked() -> None:
    assert backend.Backend().effective_n_jobs(-1) == joblib.cpu_count()
    assert backend.Backend().effective_n_jobs(-1000) == 1
    assert backend.Backend().effective_n_jobs(3) == 3
    with pytest.raises(ValueError, match="n_jobs == 0"):
        parallel(n_jobs=0)(delayed(square)(i) for i in range(3))


def test_one_job_needs_no_worker() -> None:
    assert set(parallel(n_jobs=1)(delayed(pid_of)(i) for i in range(3))) == {os.getpid()}


def test_arrays_come_whole_and_writable() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(300_000, float(i)) for i in range(6)]

    def add_one(array: Any) -> Any:
        array += 1
        return array

    results = parallel(max_nbytes=1)(delayed(add_one)(array) for array in arrays)
    for number, (array, result) in enumerate(zip(arrays, results, strict=True)):
        assert array[0] == number
        assert (result == number + 1).all()
        result += 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_for_all_tasks_is_copied_once_and_still_theirs_to_write(order: Any) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.asarray(numpy.arange(300_000.0).reshape(600, 500), order=order)
    expected = float(array.sum())

    def overwrite(array: Any, i: int) -> tuple[float, bool]:
        total = float(array.sum())
        array[:] = i
        return total, bool((array == i).all() and array.flags.forc)

    results = parallel(batch_size=1)(delayed(overwrite)(array, i) for i in range(20))
    assert results == [(expected, True)] * 20
    assert float(array.sum()) == expected


def own_names() -> set[str]:
    """What this process has in shared memory."""
    prefix = Path(names.guard_path()).name.removesuffix(".guard")
    return {name for name in names_in_shm() if name.startswith(f"{prefix}-")}


def test_an_array_is_stored_when_it_comes_again() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = Repeated()
    array = numpy.ones(200_000)
    before = own_names()
    assert arrays.reduced(array) is None
    make, args = arrays.reduced(array)
    assert arrays.reduced(array) == (make, args)
    used = arrays.take_used()
    assert len(used) == 2
    assert len(own_names() - before) == 1
    found = make(*args)
    assert (found == 1).all()
    arrays.close()
    assert own_names() == before
    found += 1
    assert (found == 2).all()
    del used
    small, objects, slices = numpy.ones(10), numpy.full(200_000, None), numpy.ones(2_000_000)[::2]
    assert [arrays.reduced(one) for one in (small, objects, slices) * 2] == [None] * 6


def test_an_array_is_kept_for_its_tasks_and_no_longer() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = Repeated()
    array = numpy.ones(200_000)
    before = own_names()
    assert arrays.reduced(array) is None
    make, args = arrays.reduced(array)
    used = arrays.take_used()
    del array
    assert (make(*args) == 1).all()
    del used
    assert own_names() == before


def test_an_array_that_takes_the_place_of_another_is_not_mistaken_for_it() -> None:
    numpy = pytest.importorskip("numpy")

    def calls() -> Iterator[Any]:
        for i in range(30):
            array = numpy.full(200_000, float(i))
            yield delayed(float_at)(array, 7)
            yield delayed(float_at)(array, 8)
            del array

    assert parallel(batch_size=1)(calls()) == [float(i) for i in range(30) for _ in range(2)]


# --- generators ---


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_generators(kind: str) -> None:
    if kind == "generator_unordered" and VERSION < (1, 4):
        pytest.skip("this joblib has none that are unordered")
    results = parallel(return_as=kind)(delayed(square)(i) for i in range(300))
    assert next(results) in {i * i for i in range(300)}
    rest = list(results)
    assert len(rest) == 299
    if kind == "generator":
        assert rest == [i * i for i in range(1, 300)]


def test_a_generator_gives_what_is_done_while_others_run(tmp_path: Path) -> None:
    def wait_for_file(x: int) -> int:
        while x and not Path(tmp_path, "go").exists():
            time.sleep(0.005)
        return x

    results = parallel(return_as="generator", batch_size=1)(delayed(wait_for_file)(i) for i in range(2))
    assert next(results) == 0
    Path(tmp_path, "go").touch()
    assert list(results) == [1]


def test_a_generator_reads_its_input_only_as_far_as_tasks_are_done(tmp_path: Path) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = parallel(return_as="generator", batch_size=1)(
        delayed(sleep_for_ever)(i, str(tmp_path)) for i in numbers()
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers are busy")
    assert read == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.close()


def test_a_dropped_generator_ends_its_tasks(tmp_path: Path) -> None:
    results = parallel(return_as="generator")(delayed(sleep_for_ever)(i, str(tmp_path)) for i in range(20))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers are busy")
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.close()
    assert parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_results_of_a_call_are_the_input_of_another() -> None:
    with parallel_config(NAME, n_jobs=2):
        first = Parallel(return_as="generator", batch_size=1)(delayed(square)(i) for i in range(100))
        second = Parallel(return_as="generator", batch_size=3)(delayed(square)(i) for i in first)
        third = Parallel()(delayed(square)(i) for i in second)
    assert third == [i**8 for i in range(100)]


def test_a_call_within_the_input_of_another() -> None:
    def inner(i: int) -> int:
        return sum(parallel()(delayed(square)(j) for j in range(i)))

    results = parallel(batch_size=1)(delayed(square)(inner(i)) for i in range(8))
    assert results == [sum(j * j for j in range(i)) ** 2 for i in range(8)]


# --- errors ---


def test_an_error_is_raised_with_its_trace() -> None:
    with pytest.raises(ValueError, match="no 7") as raised:
        parallel()(delayed(fail_at)(i, 7) for i in range(100))
    assert "in fail_at" in str(raised.value.__cause__)
    assert parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_after_an_error_nothing_more_is_done(tmp_path: Path) -> None:
    def touch(x: int) -> None:
        Path(tmp_path, str(x)).touch()
        fail_at(x, 3)

    with pytest.raises(ValueError, match="no 3"):
        parallel(batch_size=1)(delayed(touch)(i) for i in range(10_000))
    assert len(list(tmp_path.iterdir())) < 1000


def test_an_error_ends_what_else_is_running(tmp_path: Path) -> None:
    def one_fails(x: int) -> None:
        if x:
            sleep_for_ever(x, str(tmp_path))
        wait_until(lambda: list(tmp_path.iterdir()), "the other one is running")
        raise ValueError("no")

    begin = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        parallel(batch_size=1)(delayed(one_fails)(i) for i in range(2))
    assert time.monotonic() - begin < DEADLINE


@pytest.mark.skipif(VERSION < (1, 4), reason="this joblib ends the call as if there were no more input")
def test_an_error_of_the_input_is_raised() -> None:
    def numbers() -> Iterator[int]:
        yield from range(50)
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        parallel(batch_size=1)(delayed(square)(i) for i in numbers())


def test_what_cannot_be_pickled_fails_the_call() -> None:
    with pytest.raises(TypeError, match="pickle"):
        parallel(batch_size=1)(delayed(square)(x) for x in [*range(20), threading.Lock()])
    with pytest.raises(TypeError, match="pickle"):
        parallel()(delayed(lambda _: threading.Lock())(i) for i in range(5))
    assert parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_a_time_limit_ends_the_call(tmp_path: Path) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(timeout=0.2)(delayed(sleep_for_ever)(i, str(tmp_path)) for i in range(4))
    assert parallel(timeout=DEADLINE)(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


# --- survival ---


def test_a_killed_worker_fails_its_call_and_the_next_one_works() -> None:
    with pytest.raises(WorkerDied, match="SIGKILL"):
        parallel()(delayed(kill_self)(i) for i in range(50))
    assert parallel()(delayed(square)(i) for i in range(500)) == [i * i for i in range(500)]


def test_within_a_block_of_calls_too() -> None:
    with parallel() as run:
        assert run(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        with pytest.raises(WorkerDied, match="SIGKILL"):
            run(delayed(kill_self)(i) for i in range(10))
        assert run(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_between_calls_the_dead_are_replaced() -> None:
    before = set(parallel(batch_size=1)(delayed(pid_of)(i) for i in range(50)))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    after = set(parallel(batch_size=1)(delayed(pid_of)(i) for i in range(50)))
    assert not before & after


def test_a_batch_is_done_again_if_so_asked(tmp_path: Path) -> None:
    with parallel_config(NAME, retries=1):
        results = Parallel(n_jobs=2)(delayed(die_once)(i, str(tmp_path / "died")) for i in range(10))
    assert results == list(range(10))
    assert Path(tmp_path, "died").exists()


# --- the workers ---


def pids_of(**options: Any) -> set[int]:
    def meet(folder: str, x: int) -> int:
        Path(folder, str(x)).touch()
        wait_until(lambda: len(list(Path(folder).iterdir())) >= 2, "both workers are busy")
        return os.getpid()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return set(parallel(batch_size=1, **options)(delayed(meet)(folder, i) for i in range(2)))


def test_workers_are_kept() -> None:
    pids = pids_of()
    assert len(pids) == 2
    assert pids_of() == pids
    with parallel() as run:
        assert set(run(delayed(pid_of)(i) for i in range(20))) <= pids


def test_other_numbers_of_workers_replace_them() -> None:
    pids = pids_of()
    parallel(n_jobs=3)(delayed(square)(i) for i in range(10))
    wait_until(lambda: not any(map(is_alive, pids)), "those that are not needed any more have ended")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_shutdown_ends_them() -> None:
    pids = pids_of()
    backend.shutdown()
    assert not any(map(is_alive, pids))
    assert parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_calls_of_several_threads(threads: Callable[..., threading.Thread]) -> None:
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = parallel()(delayed(square)(i) for i in range(number, number + 300))

    for thread in [threads(run, number) for number in range(4)]:
        thread.join(DEADLINE)
    assert results == {number: [i * i for i in range(number, number + 300)] for number in range(4)}


def test_within_tasks_threads_are_used() -> None:
    def inner(_: int) -> tuple[int, list[tuple[int, int]]]:
        found = Parallel(n_jobs=2)(delayed(process_and_thread)(i) for i in range(10))
        deeper = Parallel(n_jobs=2)(delayed(nested)(i) for i in range(2))
        return os.getpid(), [*found, *itertools.chain(*deeper)]

    def nested(_: int) -> list[tuple[int, int]]:
        return list(Parallel(n_jobs=2)(delayed(process_and_thread)(i) for i in range(2)))

    for pid, found in parallel()(delayed(inner)(i) for i in range(4)):
        assert pid != os.getpid()
        assert {process for process, _ in found} == {pid}


def test_tasks_can_have_workers_of_their_own() -> None:
    def inner(x: int) -> tuple[int, set[int]]:
        return os.getpid(), set(parallel()(delayed(pid_of)(i) for i in range(x)))

    for pid, inner_pids in parallel(batch_size=1)(delayed(inner)(5) for _ in range(2)):
        assert pid not in inner_pids
        assert os.getpid() not in inner_pids
    backend.shutdown()
    wait_until(lambda: not is_alive(pid) and not any(map(is_alive, inner_pids)), "theirs end with them")


@pytest.mark.parametrize("method", START_METHODS)
def test_numeric_libraries_are_told_how_many_threads(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    share = str(max(joblib.cpu_count() // 2, 1))
    with parallel_config(NAME, context=method):
        assert Parallel(n_jobs=2)([delayed(os.getenv)(name) for name in names]) == ["7", share]
    with parallel_config(NAME, context=method, inner_max_num_threads=3):
        assert Parallel(n_jobs=2)([delayed(os.getenv)(name) for name in names]) == ["3", "3"]


# --- programs ---


NUMPY = """
import os
with open("seen", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('OPENBLAS_NUM_THREADS')} {os.environ.get('OMP_NUM_THREADS')}\\n")
raise ImportError("a NumPy that only tells what its libraries would see")
"""

NUMERIC = """
    import os, sys

    if __name__ == "__main__":
        from joblib import Parallel, delayed, parallel_config
        import multisocket.pool.joblib

        os.environ["OMP_NUM_THREADS"] = "7"
        with parallel_config("multisocket", context=sys.argv[1], n_jobs=2):
            print(os.getpid(), *set(Parallel()(delayed(os.getpid)() for _ in range(100))))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_numeric_libraries_are_told_before_they_are_loaded(
    run_script: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(NUMPY)
    code, out, errors = run_script(NUMERIC, method).end()
    assert (code, errors) == (0, "")
    _, *workers = out.split()
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    share = str(max(joblib.cpu_count() // 2, 1))
    assert {tuple(told) for pid, *told in seen if pid in workers} == {(share, "7")}


def test_functions_of_main_are_as_they_are_at_the_call(run_script: Callable[..., Any]) -> None:
    script = run_script(
        """
        from joblib import Parallel, delayed
        import multisocket.pool.joblib

        def helper(x):
            return x + FACTOR

        def work(x):
            return helper(x)

        class Point:
            def __init__(self, x):
                self.x = x

        FACTOR = 1
        run = Parallel(n_jobs=2, backend="multisocket")
        print(run(delayed(work)(i) for i in range(3)))
        FACTOR = 10
        print(run(delayed(work)(i) for i in range(3)))
        def helper(x):
            return -x
        print(run(delayed(work)(i) for i in range(3)))
        class Point:
            def __init__(self, x):
                self.x = 2 * x
            def y(self):
                return self.x
        print(run(delayed(lambda p: p.y())(Point(i)) for i in range(3)))
        print([p.x for p in run(delayed(Point)(i) for i in range(3))])
        """
    )
    code, out, errors = script.end()
    assert (code, errors) == (0, "")
    assert out.splitlines() == ["[1, 2, 3]", "[10, 11, 12]", "[0, -1, -2]", "[0, 2, 4]", "[0, 2, 4]"]


def test_ctrl_c_ends_a_call(run_script: Callable[..., Any]) -> None:
    script = run_script(
        """
        import os, time
        from joblib import Parallel, delayed
        import multisocket.pool.joblib

        def work(x):
            os.write(1, b"begun\\n")  # in one piece
            time.sleep(60)

        try:
            Parallel(n_jobs=2, backend="multisocket")(delayed(work)(i) for i in range(100))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    assert script.line() == "begun"
    script.interrupt()
    code, out, errors = script.end()
    assert (code, errors) == (0, "")
    assert out.endswith("interrupted")


def test_it_is_no_more_than_an_import(run_script: Callable[..., Any]) -> None:
    script = run_script(
        """
        import sys
        import multisocket.pool
        assert "joblib" not in sys.modules
        import multisocket.pool.joblib
        assert "joblib" in sys.modules and sys.modules["joblib"] is not multisocket.pool.joblib
        print("ok")
        """
    )
    assert script.end() == (0, "ok", "")
