"""The examples, on small input: what they print is right, and what is broken is reported."""

from __future__ import annotations

import hashlib
import io
import keyword
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import numpy
import pytest

from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.protocol import Rep, Req

EXAMPLE = Path(__file__).parent.parent / "examples" / "identifiers.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), "--no-progress", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def expected(*sources: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    for source in sources:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                counts[token.string] += 1
    return counts


@pytest.mark.parametrize("method", START_METHODS)
def test_identifiers(folder: Path, method: str) -> None:
    good = [b"alpha = beta(alpha)\n", b"# coding: latin-1\nalpha = '\xe9'\n", b"", b"def gamma(x): return x * alpha\n"]
    for i, source in enumerate(good):
        (folder / f"good{i}.py").write_bytes(source)
    (folder / "broken.py").write_bytes(b"x = (\n")
    (folder / "undecodable.py").write_bytes(b"x = '\xff\xfe'\n")
    (folder / "dangling.py").symlink_to(folder / "nothing")
    (folder / "huge.py").write_bytes(b"#" * (9 << 20))  # larger than any queue
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_bytes(b"other = 1\n")
    done = run(str(folder), "--workers", "2", "--start-method", method)
    assert done.returncode == 0, done.stderr
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+)  (\w+)$", done.stdout, re.MULTILINE)}
    assert counts == expected(*good)
    assert re.search(rf"^{len(good) + 1} files, 9.4 MB", done.stdout, re.MULTILINE)
    assert "3 files failed" in done.stdout
    for name, reason in [
        ("broken", "TokenError|SyntaxError"),
        ("dangling", "FileNotFound"),
    ]:
        assert re.search(rf"{name}.py: .*({reason})", done.stdout)
    assert "undecodable.py: " in done.stdout
    assert "times as fast" in done.stdout


def test_a_folder_without_files(folder: Path) -> None:
    done = run(str(folder))
    assert done.returncode == 2
    assert "there are no .py files" in done.stderr


def _start(folder: Path, processes: Processes) -> tuple[subprocess.Popen[str], list[int]]:
    """On work that takes seconds, with two workers; gives those when they have begun."""
    for i in range(60):
        (folder / f"file{i:03}.py").write_bytes(b"name = other + third\n" * 3000)
    arguments = [
        str(EXAMPLE),
        str(folder),
        "--no-progress",
        "--no-baseline",
        "--workers",
        "2",
        "--start-method",
        "fork",
    ]
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    process = processes.run(code, *arguments)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, "both workers run")
    workers = [int(pid) for pid in children.read_text().split()]
    wait_until(lambda: all(_cpu_ticks(pid) > 2 for pid in workers), "both work")
    return process, workers


def _cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_killed_worker_is_reported(folder: Path, processes: Processes) -> None:
    process, workers = _start(folder, processes)
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=4 * DEADLINE)
    assert process.returncode == 1, err
    assert re.search(r"^59 files", out, re.MULTILINE)
    assert "lost: its worker died" in out


def test_ctrl_c(folder: Path, processes: Processes) -> None:
    process, workers = _start(folder, processes)
    for pid in (process.pid, *workers):  # a terminal tells the whole group
        os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert err == "interrupted\n"


def start(processes: Processes, name: str, *arguments: str) -> subprocess.Popen[str]:
    """An example that runs until it is ended; the fixture does that."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return processes.run(code, str(EXAMPLE.parent / name), *arguments)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def finish(processes: Processes, name: str, *arguments: str) -> str:
    process = start(processes, name, *arguments)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    return out


def interrupt(*running: subprocess.Popen[str]) -> None:
    for process in running:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 130


def test_request_server(folder: Path, processes: Processes) -> None:
    (folder / "empty").touch()
    (folder / "some").write_bytes(b"abc")
    out = finish(processes, "request_server.py", str(folder), "--workers", "2")
    empty, some = hashlib.sha256(b"").hexdigest(), hashlib.sha256(b"abc").hexdigest()
    assert out.splitlines() == [f"{empty}  {folder}/empty", f"{some}  {folder}/some"]


def test_price_feed(processes: Processes) -> None:
    out = finish(processes, "price_feed.py", "--ticks", "600")
    published = re.search(r"^published: (.*)$", out, re.MULTILINE)
    everything = re.search(r"^all: 600 ticks; (.*)$", out, re.MULTILINE)
    metals = re.search(r"^metals: 300 ticks; (.*)$", out, re.MULTILINE)
    assert published
    assert everything
    assert metals
    assert everything[1] == published[1]
    assert metals[1] == ", ".join(part for part in published[1].split(", ") if part.startswith("metal."))


def test_chat(folder: Path, processes: Processes) -> None:
    def join(name: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(EXAMPLE.parent / "chat.py"), "--name", name, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = processes.started(subprocess.Popen(command, text=True, **pipes))  # type: ignore[call-overload]
        assert "Ctrl-D" in process.stderr.readline()
        return process

    hub = join("Hub", "--listen", f"ipc://{folder}/chat")
    ada, bob = join("Ada", "--dial", f"ipc://{folder}/chat"), join("Bob", "--dial", f"ipc://{folder}/chat")
    for process, text in ((ada, "hello"), (hub, "welcome")):
        process.stdin.write(text + "\n")
        process.stdin.flush()
    assert {line_of(bob), line_of(bob)} == {"Ada: hello", "Hub: welcome"}
    assert line_of(hub) == "Ada: hello"
    assert line_of(ada) == "Hub: welcome"
    for process in (ada, bob, hub):
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, err
        assert not out


def test_loads(folder: Path, processes: Processes) -> None:
    address = f"ipc://{folder}/loads"
    answering = [start(processes, "loads.py", "answer", address) for _ in range(2)]
    out = finish(processes, "loads.py", "ask", address, "--machines", "2", "--times", "1")
    assert re.search(r"^2 machines answered$", out, re.MULTILINE)
    assert len(re.findall(rf"^{re.escape(platform.node()):20} +{os.cpu_count()} processors ", out, re.MULTILINE)) == 2
    interrupt(*answering)


def test_port_forward(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        to = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        there = start(processes, "port_forward.py", "out", "tcp://127.0.0.1:0", "--to", to)
        address = line_of(there).removeprefix("listening at ")
        here = start(processes, "port_forward.py", "in", address, "--at", "tcp://127.0.0.1:0")
        port = int(line_of(here).rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as client:
            client.sendall(b"question")
            connection, _ = server.accept()
            with connection:
                connection.settimeout(DEADLINE)
                assert connection.recv(100) == b"question"
                connection.sendall(b"answer")
                assert client.recv(100) == b"answer"
        interrupt(here, there)


def test_broker(folder: Path, processes: Processes) -> None:
    front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
    broker = start(processes, "broker.py", front, back, "--every", "0.1")
    assert line_of(broker) == f"clients: {front}"
    assert line_of(broker) == f"workers: {back}"
    with Rep(bytes.upper) as rep, Req() as req:
        rep.dial(back)
        rep.start()
        req.dial(front)
        assert [req.request(b"x", DEADLINE) for _ in range(10)] == [b"X"] * 10
        while line_of(broker) != "1 clients, 1 workers, 10 requests, 10 replies, 0 dropped":
            assert broker.poll() is None
    interrupt(broker)


def test_async_service(folder: Path, processes: Processes) -> None:
    address = f"ipc://{folder}/store"
    service = start(processes, "async_service.py", "serve", address)
    assert line_of(service) == "serving"
    watching = start(processes, "async_service.py", "watch", address, "col", "--times", "1")
    assert line_of(watching) == "watching"
    for key, value in (("shape", "round"), ("color", "blue")):
        assert finish(processes, "async_service.py", "set", address, key, value) == ""
    assert finish(processes, "async_service.py", "get", address, "shape") == "round\n"
    unknown = start(processes, "async_service.py", "get", address, "size")
    assert "RemoteError: KeyError: 'size'" in unknown.communicate(timeout=DEADLINE)[1]
    assert watching.communicate(timeout=DEADLINE)[0] == "color = blue\n"
    interrupt(service)


def test_star_count(processes: Processes) -> None:
    out = finish(processes, "star_count.py", "--pictures", "3", "--size", "512", "--workers", "1")
    assert len(re.findall(r"^picture [0-2]: [1-9][0-9]+ stars$", out, re.MULTILINE)) == 3
    # Each picture is written into shared memory once, by its sender, and nothing else is copied.
    assert re.search(
        rf"^3 pictures in .* s, {3 * 512 * 512 * 4 / 1e6:.1f} MB copied by this process$", out, re.MULTILINE
    )


def test_star_count_of_files(folder: Path, processes: Processes) -> None:
    picture = numpy.random.default_rng(1).normal(0, 1, (200, 300))
    picture[50, 60] = picture[100, 200] = 500.0
    numpy.save(folder / "one.npy", picture)
    out = finish(processes, "star_count.py", str(folder / "one.npy"))
    assert f"picture {folder / 'one.npy'}: 2 stars" in out.splitlines()


def test_sweep(processes: Processes) -> None:
    process = start(processes, "sweep.py", "--rates", "200", "--steps", "2000", "--kill", "2", "--workers", "2")
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert len(re.findall(r"^killed a worker after ", err, re.MULTILINE)) == 2
    assert "the first at 3.5" in out  # chaos begins at 3.5699


@pytest.mark.parametrize("where", ["local", "dask"])
def test_imports(where: str, folder: Path, processes: Processes) -> None:
    if where == "dask":
        pytest.importorskip("distributed")
    (folder / "one.py").write_text("import os, sys\nfrom os.path import join\nfrom . import two\n")
    (folder / "two.py").write_text("import os.path\n")
    (folder / "broken.py").write_text("import\n")
    process = start(processes, "imports.py", str(folder), "--on", where)
    out, err = process.communicate(timeout=4 * DEADLINE)
    assert process.returncode == 0, err
    assert out.splitlines()[:2] == ["     2  os", "     1  sys"]
    assert out.splitlines()[2].startswith("3 files in ")
