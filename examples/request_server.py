"""A request server with worker processes: SHA-256 of files, computed by processes that share one Rep.

    python examples/request_server.py FOLDER [--workers N]

Prints what sha256sum would, for all files below the folder. The server could as well be another program on another
machine: give it a tcp:// address.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
from pathlib import Path

import multisocket as ms
from multisocket.protocol import Rep, Req


def digest(path: bytes) -> bytes:
    """What a worker does. What it raises is the requester's RemoteError."""
    return hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest().encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())

    failed = 0
    with Rep(digest) as server, Req() as client:
        server.listen("inproc://digests")
        client.dial("inproc://digests")
        workers = [multiprocessing.Process(target=server.serve) for _ in range(options.workers)]
        for worker in workers:
            worker.start()

        # All requests are outstanding at once: the idle worker takes the next.
        replies = [client.request_async(os.fsencode(path)) for path in files]
        for path, reply in zip(files, replies, strict=True):
            try:
                print(f"{reply.result().decode()}  {path}")
            except ms.RemoteError as error:
                failed += 1
                print(f"{path}: {error}", file=sys.stderr)
    for worker in workers:
        worker.join()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
