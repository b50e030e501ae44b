"""Without shared memory to use, each way to begin says so in one line, and does not wait for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conftest import DEADLINE

# A /dev of its own with nothing in it but what Python reads.
NO_SHM = """
new=$(mktemp -d) && mount -t tmpfs tmpfs "$new" && cd "$new"
for name in null urandom zero; do touch $name; mount --bind /dev/$name $name; done
mount --rbind "$new" /dev
"""
CASES = {
    "none": NO_SHM,
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "full": "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64k /dev/zero >/dev/shm/x",
    "no names": "mount -t tmpfs -o nr_inodes=1 tmpfs /dev/shm",
}
PROGRAMS = {
    "Socket": "import multisocket as ms; ms.Socket().listen('inproc://x')",
    "Ring": "from multisocket.shm import Ring; Ring.create('/ms-none')",
    "Pool": "from multisocket.pool import Pool; Pool(1).map(len, ['a'])",
    "Executor": "from multisocket.pool import Executor; Executor(1).submit(len, 'a').result()",
    "Pipeline": "from multisocket.pool import Pipeline, Stage; list(Pipeline(Stage(len, workers=1)).run(['a']))",
    "aio": "import asyncio; from multisocket import aio; asyncio.run(aio.Socket().recv())",
}


def run_with(mount: str, program: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a mount namespace of its own, after shell commands that mount something there."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    if os.geteuid() == 0:
        command.remove("--map-root-user")
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount in a namespace (unshare --mount)")
    script = f'{mount}\ncd /; exec "$0" -c "$1"'
    run = [*command, script, sys.executable, program]
    return subprocess.run(run, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("case", CASES)
def test_no_shared_memory_is_told(case: str, program: str) -> None:
    done = run_with(CASES[case], PROGRAMS[program])
    lines = done.stderr.splitlines()
    told = [line for line in lines if line.startswith("multisocket") and "OutOfSharedMemory: " in line]
    assert done.returncode == 1, done.stderr
    assert told == lines[-1:], done.stderr
    assert "/dev/shm" in told[0]
    assert done.stderr.count("Traceback") <= 2, "the error, and at most what it comes from"
    if case == "none":
        assert "mount -t tmpfs" in told[0]
