"""How long imports take: ``python -m bench.imports``.

Each in an interpreter of its own, in turns, 20 times; medians, in milliseconds. An editable install would look at each
import whether it must build something, so a copy of the package is imported; all is compiled before.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import multisocket
from multisocket import shm

ROUNDS = 20

MODULES = ("zmq", "multisocket", "multiprocessing.pool", "multisocket.pool")

_CODE = """
import time
begin = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - begin[0], time.process_time() - begin[1])
"""


def main() -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        packages = sysconfig.get_paths()["purelib"]
        for name in ("zmq", "msgpack"):
            compileall.compile_dir(Path(packages, name), quiet=2)
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{packages}"}
        taken: dict[str, list[tuple[float, float]]] = {module: [] for module in MODULES}
        for _ in range(ROUNDS):
            for module, times in taken.items():
                times.append(seconds(module, environment))
    print("| import | ms | of the processor |\n|---|---|---|")
    for module, times in taken.items():
        wall, processor = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        print(f"| `{module}` | {wall:.1f} | {processor:.1f} |")


def copied(folder: Path) -> None:
    """The package as an installer leaves it."""
    package = folder / "multisocket"
    source = Path(multisocket.errors.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(Path(shm.__file__), package)
    compileall.compile_dir(package, quiet=2)


def seconds(module: str, environment: dict[str, str]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    # -S: what an editable install adds to each start is left out.
    command = [sys.executable, "-S", "-c", _CODE.format(module=module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    wall, processor = done.stdout.split()
    return float(wall), float(processor)


if __name__ == "__main__":
    main()
