"""Programs whose pools do not stand under ``if __name__ == "__main__":``, and those that do: however they are run, and
however workers are started, they work, or say in one line what is missing."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import DEADLINE, Processes

# What gives the results of a function for 0, 1, 2.
WAYS = {
    "Pool": "with Pool(2, context=METHOD) as pool: results = pool.map(function, range(3))",
    "Executor": "with Executor(2, METHOD) as executor: results = list(executor.map(function, range(3)))",
    "Pipeline": "results = list(Pipeline(function, context=METHOD).run(range(3)))",
    "joblib": """
        with joblib.parallel_config(multisocket.pool.joblib.NAME, context=METHOD):
            results = joblib.Parallel(2)(joblib.delayed(function)(i) for i in range(3))
        """,
}

PROGRAM = """
import sys
from multisocket.pool import Executor, Pipeline, Pool
import joblib
import multisocket.pool.joblib
import helper

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(other) is type(self) and other.x == self.x

def twice(x):
    return 2 * x

def of_main(x):
    return Point(twice(x))

if __name__ == "__main__":
    print("once")

METHOD = {method!r}
{guard}:
    for function in (of_main, lambda x: Point(2 * x), helper.of_module):
{way}
        print(results == [function(i) for i in range(3)])
"""

GUARDS = {"guarded": 'if __name__ == "__main__"', "unguarded": "if True"}
HOWS = ["script", "-m", "stdin", "-c"]


def _started(processes: Processes, folder: Path, text: str, how: str) -> subprocess.Popen[str]:
    (folder / "helper.py").write_text("def of_module(x):\n    return 3 * x\n")
    (folder / "program.py").write_text(text)
    arguments = {"script": ["program.py"], "-m": ["-m", "program"], "stdin": ["-"], "-c": ["-c", text]}
    with open(folder / "program.py") as stdin:
        return processes.started(
            subprocess.Popen(
                [sys.executable, *arguments[how]],
                cwd=folder,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
            )
        )


def _cases() -> list[tuple[str, str, str, str]]:
    """As scripts all with all; the other ways to run them in turns."""
    scripts = itertools.product(WAYS, ["spawn", "forkserver"], GUARDS, ["script"])
    ways = itertools.product(["spawn", "forkserver"], GUARDS)
    others = [(way, *next(turns), how) for turns in [itertools.cycle(ways)] for way in WAYS for how in HOWS[1:]]
    return [*scripts, *others]


@pytest.mark.parametrize(("way", "method", "guard", "how"), _cases())
def test_works(processes: Processes, tmp_path: Path, way: str, method: str, guard: str, how: str) -> None:
    indented = textwrap.indent(textwrap.dedent(WAYS[way]), " " * 8)
    process = _started(processes, tmp_path, PROGRAM.format(method=method, guard=GUARDS[guard], way=indented), how)
    out, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors, out.split()) == (0, "", ["once", "True", "True", "True"])


WITHOUT_CLOUDPICKLE = """
import sys
sys.modules["cloudpickle"] = None
from multisocket.pool import Pool
import helper

def of_main(x):
    return 2 * x

pool = Pool(2, context={method!r}{more})
print(pool.map(helper.of_module, range(3)))
print(pool.map(of_main, range(3)))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_without_cloudpickle_it_is_told_what_is_missing(processes: Processes, tmp_path: Path, method: str) -> None:
    process = _started(processes, tmp_path, WITHOUT_CLOUDPICKLE.format(method=method, more=""), "script")
    out, errors = process.communicate(timeout=DEADLINE)
    assert out == "[0, 3, 6]\n"
    last = errors.splitlines()[-1]
    assert 'under if __name__ == "__main__":, or install cloudpickle' in last


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_initializer_that_workers_cannot_find(processes: Processes, tmp_path: Path, method: str) -> None:
    text = WITHOUT_CLOUDPICKLE.format(method=method, more=", initializer=of_main, initargs=(1,)")
    process = _started(processes, tmp_path, text, "script")
    out, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (1, "")
    assert 'if __name__ == "__main__":, or install cloudpickle' in errors.splitlines()[-1]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("way", ["Pool", "Executor", "Pipeline"])
def test_workers_that_would_make_workers_are_told_of_once(
    run_script: Callable[..., Any], way: str, method: str
) -> None:
    script = run_script(
        f"""
        from multisocket.pool import Executor, InitializerFailed, Pipeline, Pool
        METHOD, function = {method!r}, abs
        if __name__ in ("__main__", "__mp_main__"):
            try:
                {WAYS[way]}
            except InitializerFailed as error:
                print(error)
        """
    )
    code, out, errors = script.end()
    assert (code, errors) == (0, "")
    assert len(out.splitlines()) == 1
    assert out.startswith("workers cannot import the main module")
    assert 'put what makes them under if __name__ == "__main__":' in out


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_main_module_that_cannot_be_imported(run_script: Callable[..., Any], method: str) -> None:
    script = run_script(
        """
        import sys
        from multisocket.pool import Executor, InitializerFailed
        if __name__ == "__main__":
            executor = Executor(2, sys.argv[1])
            try:
                executor.submit(len, "abc").result(30)
            except InitializerFailed as error:
                print(error)
        else:
            raise RuntimeError("only as a script")
        """,
        method,
    )
    code, out, _ = script.end()
    assert code == 0
    assert out.endswith("script0.py): RuntimeError: only as a script")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_the_main_module_does_for_all(run_script: Callable[..., Any], method: str) -> None:
    """With a guard, workers import it, as multiprocessing has it: also for functions of other modules."""
    script = run_script(
        """
        import sys, json
        from multisocket.pool import Pool
        json.changed = len(sys.argv)
        class Local:
            pass
        state = []
        def begin(queue):
            state.append(queue)
        def put(x):
            state[0].put(x + json.changed)
        if __name__ == "__main__":
            import multiprocessing
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.SimpleQueue()
            with Pool(2, begin, (queue,), context=context) as pool:
                pool.map(put, range(3))
            print(sorted(queue.get() for _ in range(3)))
        """,
        method,
    )
    assert script.end() == (0, "[2, 3, 4]", "")
