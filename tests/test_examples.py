"""The examples, on small input: what they print is right, and what is broken is reported."""

from __future__ import annotations

import io
import keyword
import os
import re
import signal
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from conftest import DEADLINE, START_METHODS, Processes, wait_until

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
