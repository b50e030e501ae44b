"""Which identifiers does Python's standard library use most?

One process reads the files, worker processes tokenize them (that is what takes the time), and the first one adds up
what they found. All workers take their jobs from one Socket: whoever is free gets the next file. When a worker dies,
one file is lost, and reported. In the end the same is done by one process alone, to compare.

    python examples/identifiers.py                      # the standard library of the running Python, without its tests
    python examples/identifiers.py FOLDER --workers 4
"""

from __future__ import annotations

import argparse
import io
import keyword
import multiprocessing
import os
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multisocket.pool import Pipeline, Stage, StageError, WorkerDied

LOST = "lost: its worker died"
# For how long the standard library is counted, again and again: by the workers, and by one process alone.
SECONDS, SECONDS_ALONE = 9.0, 5.0


@dataclass
class Totals:
    """What came out of all files."""

    names: Counter[str] = field(default_factory=Counter)
    files: int = 0
    size: int = 0
    seconds: float = 0
    by_worker: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    # How long the jobs took, and for how much of that they had a core.
    wall: float = 0
    cpu: float = 0

    @property
    def speed(self) -> float:
        """Bytes in a second."""
        return self.size / self.seconds


def python_files(folder: Path, skipped: set[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if not skipped & set(path.relative_to(folder).parts))


def identifiers(source: bytes) -> Counter[str]:
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    return Counter(
        token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    )


# --- in the workers ---


def count(file: tuple[str, bytes]) -> dict[str, Any]:
    path, source = file
    result: dict[str, Any] = {"worker": os.getpid(), "path": path, "size": len(source)}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result["names"] = dict(identifiers(source))
    except (tokenize.TokenError, SyntaxError, ValueError) as error:  # ValueError: not in the encoding that it claims
        result["error"] = f"{type(error).__name__}: {error}"
    result["wall"], result["cpu"] = time.perf_counter() - wall, time.process_time() - cpu
    return result


# --- in the first process ---


def contents(files: Iterable[Path], totals: Totals) -> Iterator[tuple[str, bytes]]:
    """Every file that can be read."""
    for path in files:
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            totals.failures.append((str(path), f"{type(error).__name__}: {error}"))


def add(totals: Totals, result: dict[str, Any] | StageError) -> None:
    if isinstance(result, StageError):
        path, _ = result.item
        totals.failures.append((path, LOST if isinstance(result.error, WorkerDied) else str(result)))
        return
    totals.by_worker[result["worker"]] += 1
    totals.wall += result["wall"]
    totals.cpu += result["cpu"]
    if "error" in result:
        totals.failures.append((result["path"], result["error"]))
        return
    totals.names.update(result["names"])
    totals.files += 1
    totals.size += result["size"]


def count_with_workers(files: list[Path], workers: int, method: str | None, quiet: bool) -> Totals:
    totals = Totals()
    began = time.perf_counter()
    pipeline = Pipeline(
        Stage(count, workers=workers, ordered=False, on_error="yield"), context=multiprocessing.get_context(method)
    )
    with pipeline.run(contents(files, totals)) as results:
        for result in progress(results, len(files), quiet):
            add(totals, result)
    totals.seconds = time.perf_counter() - began
    return totals


def count_alone(files: list[Path], quiet: bool) -> Totals:
    """The same work in this process only."""
    totals = Totals()
    began = time.perf_counter()
    for file in progress(contents(files, totals), len(files), quiet):
        add(totals, count(file))
    totals.seconds = time.perf_counter() - began
    return totals


def progress(items: Iterable[Any], total: int, quiet: bool) -> Iterator[Any]:
    """Tells how far it is: on a terminal in one line, elsewhere in a few."""
    is_terminal = sys.stderr.isatty()
    steps = 100 if is_terminal else 5
    for done, item in enumerate(items, 1):
        yield item
        if not quiet and done * steps // total != (done - 1) * steps // total:
            print(f"{done} of {total} files", end="\r" if is_terminal else "\n", file=sys.stderr, flush=True)
    if is_terminal and not quiet:
        print("\033[K", end="", file=sys.stderr, flush=True)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def rounds_for(seconds: float, files: list[Path], cores: int) -> int:
    """How often all files can be counted in a time, by a few of them."""
    sample = count_alone(files[::25], quiet=True)
    size = sum(path.stat().st_size for path in files)
    return max(1, round(seconds * cores * sample.speed / size))


def report(totals: Totals, top: int, rounds: int) -> None:
    for name, count in totals.names.most_common(top):
        print(f"{count // rounds:9,}  {name}")
    times = f", {rounds} times" if rounds > 1 else ""
    print(
        f"\n{totals.files // rounds} files, {totals.size // rounds / 1e6:.1f} MB{times} in {totals.seconds:.2f} s:"
        f" {totals.speed / 1e6:.1f} MB/s"
    )
    for worker, count in sorted(totals.by_worker.items()):
        print(f"worker {worker}: {count} messages")
    if totals.failures:
        print(f"{len(totals.failures)} files failed, among them:")
        for path, reason in totals.failures[:5]:
            print(f"  {path}: {reason}")


def compare(totals: Totals, alone: Totals, workers: int) -> None:
    """How much faster the workers were, and if they were not, why."""
    print(
        f"one process alone: {alone.speed / 1e6:.1f} MB/s; "
        f"{workers} workers are {totals.speed / alone.speed:.2f} times as fast"
    )
    if cores() == 1:
        print("This process may use one core only, where workers can but take turns: more cores make them faster.")
    elif workers <= cores() and (had := min(totals.cpu / totals.wall, alone.cpu / alone.wall)) < 0.8:
        print(f"They had a core for only {had:.0%} of their time: others use the machine, so this says little.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts the identifiers of Python files with worker processes.")
    parser.add_argument("folder", nargs="?", type=Path, help="default: Python's standard library, without its tests")
    parser.add_argument("--workers", type=int, default=max(2, cores()))
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument(
        "--rounds", type=int, help="how often all is counted; default: once, the library for some seconds"
    )
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--no-baseline", action="store_true", help="do not measure one process alone")
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    for option in ("workers", "rounds"):
        if (getattr(arguments, option) or 1) < 1:
            parser.error(f"--{option} must be 1 or more")
    if arguments.folder is None:
        folder, skipped, default = Path(sysconfig.get_path("stdlib")), {"site-packages", "test", "tests"}, None
    else:
        folder, skipped, default = arguments.folder, {"site-packages"}, 1
    files = python_files(folder, skipped)
    if not files:
        parser.error(f"there are no .py files in {folder}")

    given = arguments.rounds or default
    rounds = given or rounds_for(SECONDS, files, min(cores(), arguments.workers))
    totals = count_with_workers(files * rounds, arguments.workers, arguments.start_method, arguments.no_progress)
    report(totals, arguments.top, rounds)
    if not arguments.no_baseline:
        alone = count_alone(files * (given or rounds_for(SECONDS_ALONE, files, 1)), arguments.no_progress)
        compare(totals, alone, arguments.workers)
    return 1 if any(reason == LOST for _, reason in totals.failures) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
