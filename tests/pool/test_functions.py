"""Functions on their way to workers: by name, by value, redefined, long, unknown."""

from __future__ import annotations

import functools
import operator
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import DEADLINE, START_METHODS
from multisocket.pool.functions import Functions

from . import jobs

Make = Callable[..., Any]
methods = pytest.mark.parametrize("method", START_METHODS)

FUNCTIONS: dict[str, tuple[Callable[[int], Any], Any]] = {
    "a function": (jobs.square, 9),
    "a builtin": (abs, 3),
    "of another module": (operator.neg, -3),
    "a class": (float, 3.0),
    "a partial": (functools.partial(jobs.add, 1, c=2), 6),
    "a method": (jobs.Scaled(5).plus, 8),
    "a method of a builtin": ({3: "three"}.get, "three"),
    "a class method": (jobs.Scaled.named, "Scaled 3"),
    "a static method": (jobs.Scaled.negative, -3),
    "a callable": (jobs.Scaled(5), 15),
    "an operator": (operator.methodcaller("__add__", 4), 7),
}


@methods
@pytest.mark.parametrize("what", FUNCTIONS)
def test_functions_with_names(make_pool: Make, method: str, what: str) -> None:
    function, expected = FUNCTIONS[what]
    assert make_pool(1, method=method).map(function, [3, 3]) == [expected] * 2


@methods
def test_functions_without_names(make_pool: Make, make_executor: Make, method: str) -> None:
    pytest.importorskip("cloudpickle")
    factor = 7

    def scaled(x: int) -> int:
        return factor * x

    pool, executor = make_pool(1, method=method), make_executor(1, method=method)
    assert pool.map(lambda x: x + factor, [1, 2]) == [8, 9]
    assert list(pool.imap(scaled, [1, 2])) == [7, 14]
    assert executor.submit(scaled, 3).result(DEADLINE) == 21
    factor = 8
    assert pool.map(scaled, [1]) == [8], "what it has closed over is as it is now"
    assert pool.apply(pool_free, (scaled, 2)) == 16


def pool_free(function: Callable[[int], int], x: int) -> int:
    return function(x)


def test_state_of_a_callable_is_as_it_is_at_the_call(make_pool: Make) -> None:
    pool = make_pool(1)
    scaled = jobs.Scaled(2)
    assert pool.apply(scaled, (3,)) == 6
    scaled.factor = 10
    assert pool.apply(scaled, (3,)) == 30
    assert pool.apply(scaled.plus, (3,)) == 13


@pytest.mark.parametrize("way", ["imap", "submit"])
def test_a_long_function_is_loaded_once_in_each_worker(make_pool: Make, make_executor: Make, way: str) -> None:
    pytest.importorskip("cloudpickle")
    counted = jobs.Counted(b"x" * 300000)

    def function(i: int) -> tuple[int, int]:
        return counted(i)

    if way == "imap":
        seen = list(make_pool(2).imap(function, range(500)))
    else:
        executor = make_executor(2)
        seen = [future.result(DEADLINE) for future in [executor.submit(function, i) for i in range(500)]]
    loads: defaultdict[int, set[int]] = defaultdict(set)
    for pid, count in seen:
        loads[pid].add(count)
    assert all(counts == {1} for counts in loads.values()), loads


@pytest.mark.parametrize("size", [10, 300000])
def test_what_a_task_changes_in_its_callable_no_other_sees(make_pool: Make, make_executor: Make, size: int) -> None:
    counter = jobs.Counter_(b"x" * size)
    executor = make_executor(1)
    assert [executor.submit(counter.increment, 0).result(DEADLINE) for _ in range(5)] == [1] * 5
    assert list(make_pool(1).imap(functools.partial(jobs.append_to, []), range(5))) == [1] * 5
    assert counter.count == 0


def test_many_long_functions(make_pool: Make) -> None:
    """More than are remembered."""
    pool = make_pool(2)
    results = [pool.apply_async(functools.partial(jobs.echo, b"x" * 1000 + b"%d" % i)) for i in range(400)]
    assert [one.get(DEADLINE)[1000:] for one in results] == [b"%d" % i for i in range(400)]
    again = [pool.apply_async(functools.partial(jobs.echo, b"x" * 1000 + b"%d" % i)) for i in range(400)]
    assert [one.get(DEADLINE)[1000:] for one in again] == [b"%d" % i for i in range(400)]


def test_functions_are_forgotten() -> None:
    functions = Functions()
    try:
        namespace: dict[str, Any] = {}
        for i in range(300):
            exec(f"def function{i}(): pass", namespace)
            functions.of(functools.partial(operator.add, i))
        assert len(functions._by_blob) <= 129
        assert functions.of(jobs.square) is functions.of(jobs.square)
    finally:
        if hasattr(functions, "close"):
            functions.close()


# --- of __main__ ---

LATER = """
import sys
from multisocket.pool import Executor, Pool

class Doubled:
    def __init__(self, x): self.x = 2 * x
    def __eq__(self, other): return self.x == other.x

if __name__ == "__main__":
    pool = Pool(2)

    def square(x): return x * x
    class Late:
        def __init__(self, x): self.x = x
        def get(self): return self.x
    def get(late): return late.get()

    print(pool.map(square, range(4)))
    print(pool.map(get, [Late(1), Late(2)]))
    print([late.x for late in pool.map(Late, [1, 2])])

    def square(x): return -x
    print(pool.map(square, range(4)))
    def square(x, by=1): return x * by
    print(pool.map(square, range(4)))
    def square(x, by=2): return x * by
    print(pool.map(square, range(4)))
    def square(x, *, by=3): return x * by
    print(pool.map(square, range(4)))
    def square(x, *, by=4): return x * by
    print(pool.map(square, range(4)))
"""


def test_functions_of_main_may_come_later_and_change(run_script: Make) -> None:
    pytest.importorskip("cloudpickle")
    code, out, errors = run_script(LATER).end()
    assert (code, errors) == (0, "")
    assert out.splitlines() == [
        "[0, 1, 4, 9]",
        "[1, 2]",
        "[1, 2]",
        "[0, -1, -2, -3]",
        "[0, 1, 2, 3]",
        "[0, 2, 4, 6]",
        "[0, 3, 6, 9]",
        "[0, 4, 8, 12]",
    ]


CHANGED_MEANWHILE = """
from multisocket.pool import Executor

if __name__ == "__main__":
    executor = Executor(1)
    executor.submit(abs, 1).result()

    def square(x): return x * x
    first = [executor.submit(square, i) for i in range(50)]
    def square(x): return -x
    second = [executor.submit(square, i) for i in range(50)]
    print([future.result() for future in first] == [i * i for i in range(50)])
    print([future.result() for future in second] == [-i for i in range(50)])
"""


def test_a_function_of_main_changes_while_it_waits(run_script: Make) -> None:
    pytest.importorskip("cloudpickle")
    assert run_script(CHANGED_MEANWHILE).end() == (0, "True\nTrue", "")


WITHOUT_CLOUDPICKLE = """
import multiprocessing, sys
sys.modules["cloudpickle"] = None
from multisocket.pool import Executor, Pool

def early(x): return (lambda y: y + 1)(x)

class Early:
    def __init__(self, x): self.x = x

if __name__ == "__main__":
    pool = Pool(1, context=multiprocessing.get_context(sys.argv[1]))
    print(pool.map(early, range(3)), [one.x for one in pool.map(Early, range(3))])
    executor = Executor(1, multiprocessing.get_context(sys.argv[1]))
    executor.submit(abs, 1).result()
    def late(x): return x
    class Late: pass
    for attempt in (
        lambda: pool.apply(lambda: 1), lambda: pool.map(late, [1]), lambda: next(pool.imap(abs, [Late()])),
        lambda: executor.submit(late, 1).result(), lambda: executor.submit(lambda: 1).result(),
    ):
        try:
            attempt()
            print("done")
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    def early(x): return 0
    try:
        print(pool.map(early, range(3)))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    print(pool.map(abs, range(3)), executor.submit(abs, -1).result())
"""


@methods
def test_without_cloudpickle(run_script: Make, method: str) -> None:
    code, out, errors = run_script(WITHOUT_CLOUDPICKLE, method).end()
    lines = out.splitlines()
    assert (code, errors) == (0, "")
    assert lines[0] == "[1, 2, 3] [0, 1, 2]"
    assert "pickle" in lines[1] or "local object" in lines[1]
    assert "lambda" in lines[1]
    for line in lines[2:5]:
        assert "late" in line.lower(), line
        assert "__main__" in line or "__mp_main__" in line, line
    assert "lambda" in lines[5]
    assert "early of __main__ has changed" in lines[6]
    assert "install cloudpickle" in lines[6]
    assert lines[7] == "[0, 1, 2] 1"


# --- of modules that are not there ---


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_module_that_workers_cannot_import(make_executor: Make, tmp_path: Path, method: str) -> None:
    (tmp_path / f"absent_{method}.py").write_text("def function(x): return x\nclass Thing: pass\n")
    executor = make_executor(1, method=method)
    assert executor.submit(abs, -1).result(DEADLINE) == 1
    sys.path.insert(0, str(tmp_path))
    try:
        module = __import__(f"absent_{method}")
        with pytest.raises(Exception, match=f"No module named 'absent_{method}'"):
            executor.submit(module.function, 1).result(DEADLINE)
        with pytest.raises(Exception, match=f"No module named 'absent_{method}'"):
            executor.submit(abs, module.Thing()).result(DEADLINE)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop(f"absent_{method}", None)
    assert executor.submit(abs, -2).result(DEADLINE) == 2


def test_a_function_that_cannot_be_sent_fails_alone(make_pool: Make, make_executor: Make) -> None:
    pool, executor = make_pool(1), make_executor(1)
    bad = functools.partial(abs, jobs.Unpicklable())
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(bad).result(DEADLINE)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.apply(bad)
    with pytest.raises(TypeError, match="cannot be pickled"):
        list(pool.imap(bad, [1]))
    assert pool.apply(abs, (-1,)) == executor.submit(abs, -1).result(DEADLINE) == 1
