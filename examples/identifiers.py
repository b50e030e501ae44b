"""Which identifiers does Python's standard library use most?

One process reads the files, worker processes tokenize them (that is what takes the time), and the first one adds up
what they found. All workers take their jobs from ONE Socket: whoever is free gets the next file.

    python examples/identifiers.py                      # the standard library of the running Python
    python examples/identifiers.py FOLDER --workers 4
"""

from __future__ import annotations

import argparse
import contextlib
import io
import keyword
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
import time
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import multisocket as ms
from multisocket.protocol import Pull, Push

END = b""
LOST = "lost: its worker died"
CHECK_SECONDS = 0.5


@dataclass
class Totals:
    """What came out of all files."""

    names: Counter[str] = field(default_factory=Counter)
    files: int = 0
    size: int = 0
    by_worker: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Field:
    """Who works on it."""

    jobs: Pull
    results: Pull
    workers: list[BaseProcess]
    reader: threading.Thread

    def queued(self) -> int:
        return self.jobs.socket.stats()["depth"]


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.relative_to(folder).parts)


def identifiers(source: bytes) -> Counter[str]:
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    return Counter(
        token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    )


# --- in the workers ---


def work(jobs: Pull, results: Push) -> None:
    """Takes files until there are no more; says what it takes, so that nobody waits for a file it dies over."""
    # Ctrl-C is for the first process: it closes the Sockets, and that ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ms.Closed):
        for job in jobs:
            if job == END:
                return
            path, _, source = job.partition(b"\0")
            results.send_obj({"path": path, "taken": os.getpid()})
            results.send_obj(result_of(os.fsdecode(path), source))


def result_of(path: str, source: bytes) -> dict[str, Any]:
    result: dict[str, Any] = {"worker": os.getpid(), "path": os.fsencode(path), "size": len(source)}
    try:
        result["names"] = dict(identifiers(source))
    except (tokenize.TokenError, SyntaxError, ValueError) as error:  # ValueError: not in the encoding that it claims
        result["error"] = f"{type(error).__name__}: {error}"
    return result


# --- in the first process ---


def read_all(files: Iterable[Path], jobs: Push, results: Push) -> None:
    """Sends every file to some worker. What cannot even be sent is a result already."""
    for path in files:
        name = os.fsencode(path)
        try:
            jobs.send(name + b"\0" + path.read_bytes())
        except ms.Closed:  # interrupted
            return
        except (OSError, ms.ContentTooLong) as error:
            results.send_obj({"path": name, "error": f"{type(error).__name__}: {error}"})


def collect(field: Field, files: list[Path], quiet: bool) -> Totals:
    totals = Totals()
    for result in progress(each_result(field, {os.fsencode(path) for path in files}), len(files), quiet):
        add(totals, result)
    return totals


def each_result(field: Field, missing: set[bytes]) -> Iterator[dict[str, Any]]:
    """One for each file, also for those that died with their worker."""
    taken: dict[bytes, int] = {}
    while missing:
        try:
            result = field.results.recv_obj(timeout=CHECK_SECONDS)
        except ms.Timeout:
            for path in lost(field, missing, taken):
                missing.discard(path)
                yield {"path": path, "error": LOST}
            continue
        if "taken" in result:
            taken[result["path"]] = result["taken"]
        elif result["path"] in missing:
            missing.discard(result["path"])
            yield result


def lost(field: Field, missing: set[bytes], taken: dict[bytes, int]) -> list[bytes]:
    """The files that will never come: dead workers had taken them, or nobody is left to take them."""
    alive = {worker.pid for worker in field.workers if worker.is_alive()}
    theirs = [path for path in missing if path in taken and taken[path] not in alive]
    nobody_has_them = len(alive) < len(field.workers) and not field.reader.is_alive() and not field.queued()
    if not alive or (nobody_has_them and not theirs and not any(path in taken for path in missing)):
        return list(missing)
    return theirs


def add(totals: Totals, result: dict[str, Any]) -> None:
    if "worker" in result:
        totals.by_worker[result["worker"]] += 1
    if "error" in result:
        totals.failures.append((os.fsdecode(result["path"]), result["error"]))
        return
    totals.names.update(result["names"])
    totals.files += 1
    totals.size += result["size"]


def count_with_workers(files: list[Path], workers: int, method: str | None, quiet: bool) -> Totals:
    context = multiprocessing.get_context(method)
    # What nobody has taken when it ends (by Ctrl-C, say) is not waited for.
    with Push(send_stop_timeout=0.0) as out, Pull() as jobs, Push() as back, Pull() as results:
        jobs.listen("inproc://jobs")
        out.dial("inproc://jobs")
        results.listen("inproc://results")
        back.dial("inproc://results")
        running = [context.Process(target=work, args=(jobs, back), daemon=True) for _ in range(workers)]
        for worker in running:
            worker.start()
        reader = threading.Thread(target=read_all, args=(files, out, back), daemon=True)
        reader.start()
        totals = collect(Field(jobs, results, running, reader), files, quiet)
        out.send_many([END] * workers)
        for worker in running:
            worker.join()
        return totals


def count_alone(files: list[Path], quiet: bool) -> float:
    """The same work in this process only; gives the seconds it takes."""
    began = time.perf_counter()
    totals = Totals()
    for path in progress(files, len(files), quiet):
        try:
            add(totals, result_of(str(path), path.read_bytes()))
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
