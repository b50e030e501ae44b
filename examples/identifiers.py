"""Which identifiers does Python's standard library use most?

One process reads the files, worker processes tokenize them (that is what takes the time), and the first one adds up
what they found. All workers take their jobs from one Socket: whoever is free gets the next file. When a worker dies,
one file is lost, and reported.

    python examples/identifiers.py                      # the standard library of the running Python
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


@dataclass
class Totals:
    """What came out of all files."""

    names: Counter[str] = field(default_factory=Counter)
    files: int = 0
    size: int = 0
    by_worker: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.relative_to(folder).parts)


def identifiers(source: bytes) -> Counter[str]:
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    return Counter(
        token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    )


# --- in the workers ---


def count(file: tuple[str, bytes]) -> dict[str, Any]:
    path, source = file
    result: dict[str, Any] = {"worker": os.getpid(), "path": path, "size": len(source)}
    try:
        result["names"] = dict(identifiers(source))
    except (tokenize.TokenError, SyntaxError, ValueError) as error:  # ValueError: not in the encoding that it claims
        result["error"] = f"{type(error).__name__}: {error}"
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
    if "error" in result:
        totals.failures.append((result["path"], result["error"]))
        return
    totals.names.update(result["names"])
    totals.files += 1
    totals.size += result["size"]


def count_with_workers(files: list[Path], workers: int, method: str | None, quiet: bool) -> Totals:
    totals = Totals()
    pipeline = Pipeline(
        Stage(count, workers=workers, ordered=False, on_error="yield"), context=multiprocessing.get_context(method)
    )
    with pipeline.run(contents(files, totals)) as results:
        for result in progress(results, len(files), quiet):
            add(totals, result)
    return totals


def count_alone(files: list[Path], quiet: bool) -> float:
    """The same work in this process only; gives the seconds it takes."""
    began = time.perf_counter()
    totals = Totals()
    for path in progress(files, len(files), quiet):
        try:
            add(totals, count((str(path), path.read_bytes())))
        except OSError:
            continue
    return time.perf_counter() - began


def progress(items: Iterable[Any], total: int, quiet: bool) -> Iterable[Any]:
    if quiet:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return dots(items, total)
    return tqdm(items, total=total, unit="file", leave=False)


def dots(items: Iterable[Any], total: int) -> Iterator[Any]:
    for done, item in enumerate(items, 1):
        yield item
        if done * 20 // total != (done - 1) * 20 // total:
            print(f"{done} of {total} files", file=sys.stderr)


def report(totals: Totals, top: int, seconds: float) -> None:
    for name, count in totals.names.most_common(top):
        print(f"{count:9,}  {name}")
    print(
        f"\n{totals.files} files, {totals.size / 1e6:.1f} MB in {seconds:.2f} s: {totals.size / 1e6 / seconds:.1f} MB/s"
    )
    for worker, count in sorted(totals.by_worker.items()):
        print(f"worker {worker}: {count} messages")
    if totals.failures:
        print(f"{len(totals.failures)} files failed, among them:")
        for path, reason in totals.failures[:5]:
            print(f"  {path}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts the identifiers of Python files with worker processes.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--no-baseline", action="store_true", help="do not measure one process alone")
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    files = python_files(arguments.folder)
    if not files:
        parser.error(f"there are no .py files in {arguments.folder}")

    began = time.perf_counter()
    totals = count_with_workers(files, arguments.workers, arguments.start_method, arguments.no_progress)
    seconds = time.perf_counter() - began
    report(totals, arguments.top, seconds)
    if not arguments.no_baseline:
        alone = count_alone(files, arguments.no_progress)
        print(f"one process alone: {alone:.2f} s; {arguments.workers} workers are {alone / seconds:.2f} times as fast")
    return 1 if any(reason == LOST for _, reason in totals.failures) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
