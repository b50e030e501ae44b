"""A pipeline whose statistics a browser shows while it runs.

``python examples/browser/server.py`` prints the address of the page. Worker processes that share one Socket look for
primes. Another Socket speaks WebSocket with the pages: it sends all of them statistics, and passes their questions on
to the same workers.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import math
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import multisocket as ms

FOLDER = Path(__file__).parent
RANGE = 20_000
PERIOD = 0.2


def is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))


def work(jobs: ms.Socket) -> None:
    """Counts the primes of a range, or answers whether a number is one; back to where it came from."""
    for msg in jobs:
        job = json.loads(msg.content)
        if "page" in job:
            job["answer"] = f"{job['number']} is {'a' if is_prime(job['number']) else 'no'} prime"
        else:
            job["primes"] = sum(map(is_prime, range(job["start"], job["start"] + RANGE)))
        jobs.send_to(msg.source, json.dumps(job).encode())


class Pipeline:
    """Keeps the workers busy, and the pages informed."""

    def __init__(self, jobs: ms.Socket, pages: ms.Socket, workers: int) -> None:
        self._jobs = jobs
        self._pages = pages
        self._workers = workers
        self._next = 0
        self._primes = 0
        self._done = 0
        self._began = time.monotonic()
        for _ in range(2 * workers):
            self._give()

    def _give(self) -> None:
        self._jobs.send(json.dumps({"start": self._next}).encode())
        self._next += RANGE

    def collect(self) -> None:
        """Takes the workers' results until the Socket is closed."""
        for msg in self._jobs:
            result = json.loads(msg.content)
            if "page" in result:
                self._answer(result)
                continue
            self._primes += result["primes"]
            self._done += 1
            self._give()

    def _answer(self, result: dict[str, Any]) -> None:
        with contextlib.suppress(ms.BrokenPath, ms.MessageDropped):  # the page is gone, or does not listen
            self._pages.send_to(result["page"], json.dumps({"answer": result["answer"]}).encode(), timeout=0)

    def ask(self) -> None:
        """Passes the pages' questions on."""
        for msg in self._pages:
            if msg.content.isdigit() and len(msg.content) <= 12:
                question = {"page": msg.source, "number": int(msg.content)}
                self._jobs.send(json.dumps(question).encode())

    def tell(self) -> None:
        """Sends all pages the statistics. Slow ones miss some."""
        seconds = time.monotonic() - self._began
        statistics = {
            "workers": self._workers,
            "numbers looked at": self._done * RANGE,
            "primes found": self._primes,
            "numbers a second": round(self._done * RANGE / seconds),
            "pages that watch": len(self._pages.pipes),
        }
        self._pages.send_all(json.dumps(statistics).encode())


class Page(http.server.SimpleHTTPRequestHandler):
    """Serves this folder's files."""

    def __init__(self, *args: object, ws_port: int, **kwargs: object) -> None:
        self._ws_port = ws_port
        super().__init__(*args, directory=str(FOLDER), **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        page = (FOLDER / "index.html").read_text().replace("WS_PORT", str(self._ws_port)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of the page; any free one by default")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    with ms.Socket() as shared, ms.Socket() as jobs, ms.Socket(send_best_effort=True) as pages:
        shared.listen("inproc://primes")
        jobs.dial("inproc://primes")
        workers = [multiprocessing.Process(target=work, args=(shared,), daemon=True) for _ in range(options.workers)]
        for worker in workers:
            worker.start()

        def is_ours(origin: str) -> bool:
            return origin == f"http://127.0.0.1:{web.server_port}"

        listener = pages.listen("ws://127.0.0.1:0/live", origin_checker=is_ours)
        ws_port = int(listener.address.rpartition(":")[2].partition("/")[0])
        handler = functools.partial(Page, ws_port=ws_port)
        web = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler)
        pipeline = Pipeline(jobs, pages, options.workers)
        for run in (pipeline.collect, pipeline.ask, web.serve_forever):
            threading.Thread(target=run, daemon=True).start()
        print(f"http://127.0.0.1:{web.server_port}/", flush=True)
        try:
            while True:
                time.sleep(PERIOD)
                pipeline.tell()
        except KeyboardInterrupt:
            web.shutdown()


if __name__ == "__main__":
    main()
