"""What does Python's standard library import most? The same pipeline on this machine and on a dask cluster.

    python examples/imports.py                          # worker processes of this machine
    python examples/imports.py --on dask                # a cluster that dask starts here, of two processes
    python examples/imports.py --on tcp://10.0.0.2:8786 # the dask scheduler there

On a cluster, workers must be able to read the files, and to import this module or get it by value (as here, where it is
the main program).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from multisocket.pool import Pipeline, Stage


def parse(path: str) -> Iterator[list[str]]:
    """The modules that a file imports; nothing for one that is no Python."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    yield [name for node in ast.walk(tree) for name in imported(node)]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def top_level(names: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@contextlib.contextmanager
def executor_of(where: str) -> Iterator[Executor | None]:
    """None: this machine's own workers."""
    if where == "local":
        yield None
        return
    from dask.distributed import Client, LocalCluster

    with contextlib.ExitStack() as opened:
        address = where
        if where == "dask":
            one = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # pyright: ignore[reportArgumentType]
            address = opened.enter_context(one)
        client = opened.enter_context(Client(address))
        yield client.get_executor()


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts the imports of Python files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--on", default="local", help="local, dask, or the address of a dask scheduler")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    files = [str(path) for path in sorted(arguments.folder.rglob("*.py")) if "site-packages" not in path.parts]
    pipeline = Pipeline(Stage(parse, workers=arguments.workers, ordered=False), Stage(top_level, ordered=False))

    counts: Counter[str] = Counter()
    with executor_of(arguments.on) as executor:
        began = time.perf_counter()
        with pipeline.run(files, executor=executor, progress=arguments.progress) as results:
            for modules in results:
                counts.update(modules)
        seconds = time.perf_counter() - began
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: arguments.top]:
        print(f"{count:6,}  {name}")
    print(f"{len(files)} files in {seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
