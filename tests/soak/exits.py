"""Runs the README's programs many times, with what is left open in turns, and looks at how each ends.

    .venv/bin/python tests/soak/exits.py 1000

Nothing may be written to stderr, the exit status must be 0, and what a program printed must be right. In the end
nothing may be left in /dev/shm that was not there before, so nobody else may use multisocket meanwhile. Exit status 1:
something was not so. `make soak RUNS=1000` does the same.
"""

from __future__ import annotations

import collections
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
DEADLINE = 60.0

LEFT_OPEN = """
import multisocket as ms
sock, other = ms.Socket(), ms.Socket()
sock.listen("ipc://@open")
other.dial("ipc://@open")
other.send(b"x")
print(sock.recv(5))
"""
POOL = """
from multisocket.pool import Pool

if __name__ == "__main__":
    with Pool(2) as pool:
        print(pool.map(abs, range(-2, 2)))
"""


def of_readme(beginning: str) -> str:
    (text,) = re.findall(rf"```python\n({beginning}.*?)```", README, re.DOTALL)
    return str(text)


PROGRAMS = {
    "first": (of_readme("import multiprocessing"), r"\[b'(ONE|TWO|THREE)'(, b'(ONE|TWO|THREE)'){2}\]"),
    "request": (of_readme("from multisocket.protocol"), r"b'olleh'"),
    "left open": (LEFT_OPEN, r"b'x'"),
    "pool": (POOL, r"\[2, 1, 0, 1\]"),
}


def names_in_shm() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("ms-")}


def run(folder: Path, number: int, name: str) -> str:
    """What is wrong with a run; nothing, if it is as it must be."""
    text, printed = PROGRAMS[name]
    path = folder / "program.py"
    path.write_text(re.sub(r"ipc://@\w+", f"ipc://@{folder.name}-{number}", text))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=DEADLINE)
    if done.returncode or done.stderr:
        return f"exit status {done.returncode}, {done.stderr[-500:]}"
    return "" if re.fullmatch(printed, done.stdout.strip()) else f"printed {done.stdout!r}"


def main(runs: int) -> int:
    before = names_in_shm()
    began = time.monotonic()
    wrong: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="ms-exits-") as folder:
        for number, name in zip(range(runs), itertools.cycle(PROGRAMS), strict=False):
            if what := run(Path(folder), number, name):
                wrong[name] += 1
                print(f"{name}: {what}", flush=True)
    left = names_in_shm() - before
    print(
        f"Python {sys.version.split()[0]}: {runs} runs of {len(PROGRAMS)} programs in {time.monotonic() - began:.0f} s,"
        f" {sum(wrong.values())} wrong; left in /dev/shm: {sorted(left)}"
    )
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
