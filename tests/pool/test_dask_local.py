"""dask's schedulers of one machine, with our Executor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import DEADLINE
from multisocket.pool import Executor, WorkerDied

dask = pytest.importorskip("dask")

Make = Callable[..., Executor]

# Given as the scheduler, dask hands tasks to it as they are; as the pool of its own processes, it packs them itself.
WAYS = ["scheduler", "pool"]


@pytest.fixture(params=WAYS)
def executor(request: pytest.FixtureRequest, make_executor: Make) -> Iterator[Executor]:
    made = make_executor(2)
    with dask.config.set(**options(request.param, made)):
        yield made


def options(way: str, executor: Executor) -> dict[str, Any]:
    return {"scheduler": executor} if way == "scheduler" else {"scheduler": "processes", "pool": executor}


def square(x: int) -> int:
    return x * x


def pid_of(_: object) -> int:
    return os.getpid()


def kill_self(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(DEADLINE)


def fail(x: int) -> int:
    raise ValueError(f"no {x}")


def test_a_graph_is_computed_by_workers(executor: Executor) -> None:
    squares = [dask.delayed(square)(i) for i in range(50)]
    assert dask.delayed(sum)(squares).compute() == sum(i * i for i in range(50))
    pids = set(dask.compute(*[dask.delayed(pid_of)(i) for i in range(50)]))
    assert pids <= {worker.pid for worker in executor.workers}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_is_named_in_a_call(make_executor: Make, method: str, way: str) -> None:
    total = dask.delayed(sum)([dask.delayed(square)(i) for i in range(20)])
    assert total.compute(**options(way, make_executor(2, method=method))) == sum(i * i for i in range(20))


def test_steps_that_depend_on_each_other(executor: Executor) -> None:
    value = dask.delayed(0)
    for i in range(30):
        value = dask.delayed(lambda x, y: x + y)(value, dask.delayed(square)(i))
    assert value.compute() == sum(i * i for i in range(30))


def test_bags_with_lambdas(executor: Executor) -> None:
    bag = pytest.importorskip("dask.bag")
    evens = bag.from_sequence(range(1000), npartitions=10).filter(lambda x: x % 2 == 0)
    assert evens.map(lambda x: x + 1).sum().compute() == sum(i + 1 for i in range(0, 1000, 2))


def test_arrays(executor: Executor) -> None:
    numpy = pytest.importorskip("numpy")
    array = pytest.importorskip("dask.array")
    ones = array.from_array(numpy.ones((600, 600)), chunks=(200, 600))
    result = (ones * 2 + ones.T).compute()
    assert result.shape == (600, 600)
    assert (result == 3).all()
    result += 1  # it is the caller's own


def test_an_error_is_raised(executor: Executor) -> None:
    with pytest.raises(ValueError, match="no 3"):
        dask.compute(dask.delayed(square)(2), dask.delayed(fail)(3))
    assert dask.delayed(square)(4).compute() == 16


def test_a_killed_worker_fails_its_graph_and_the_next_one_works(executor: Executor) -> None:
    with pytest.raises(WorkerDied, match="SIGKILL"):
        dask.compute(dask.delayed(square)(2), dask.delayed(kill_self)(3))
    squares = [dask.delayed(square)(i) for i in range(50)]
    assert dask.compute(*squares) == tuple(i * i for i in range(50))


def test_as_many_tasks_at_once_as_there_are_workers(make_executor: Make) -> None:
    executor = make_executor(3)
    submitted: list[Any] = []
    submit = executor.submit

    def watched(*args: Any) -> Any:
        running = [future for future in submitted if not future.done()]
        assert len(running) < 3
        submitted.append(submit(*args))
        return submitted[-1]

    executor.submit = watched  # type: ignore[method-assign]
    results = dask.compute(*[dask.delayed(square)(i) for i in range(40)], scheduler=executor)
    assert results == tuple(i * i for i in range(40))
    assert len(submitted) > 3
