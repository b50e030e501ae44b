"""Run where a wheel was installed: messages between processes, and nothing of the project's folder.

No test by itself: `make wheel` and cibuildwheel run it.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
from pathlib import Path

import multisocket as ms
from multisocket.pool import Pool


def answer(sock: ms.Socket) -> None:
    for msg in sock:
        sock.send_to(msg.source, msg.content.upper())


def main() -> None:
    project = Path(__file__).resolve().parents[2]
    package = Path(ms.__file__).resolve().parent
    assert package != project / "multisocket", f"the project's folder was found: {package}"
    assert (package / "py.typed").exists()
    assert (package / "shm.pyi").exists()
    assert importlib.metadata.version("multisocket") == ms.__version__
    with ms.Socket() as server, ms.Socket() as client:
        server.listen("ipc://@multisocket-installed")
        worker = multiprocessing.get_context("spawn").Process(target=answer, args=(server,))
        worker.start()
        client.dial("ipc://@multisocket-installed")
        client.send(b"works")
        assert client.recv(timeout=60) == b"WORKS"
        large = bytes(10_000_000)
        client.send(large)
        assert client.recv(timeout=60) == large
    worker.join(60)
    assert worker.exitcode == 0
    with Pool(2) as pool:
        assert pool.map(len, ["a", "bc"]) == [1, 2]
    print(f"multisocket {ms.__version__} works in {package}")


if __name__ == "__main__":
    main()
