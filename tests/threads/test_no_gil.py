"""Where Python has no GIL, nothing of ours brings it back; and named memory is the same whoever makes it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator

import pytest

import multisocket as ms
from multisocket import shm

IMPORT_ALL = """
import importlib, pkgutil, sys
import multisocket
for found in pkgutil.walk_packages(multisocket.__path__, "multisocket."):
    if found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        # What is optional may be missing.
        assert (error.name or "").partition(".")[0] not in ("", "multisocket"), error
    assert not sys._is_gil_enabled(), f"{found.name} has turned the GIL on"
sender, receiver = multisocket.Socket(), multisocket.Socket()
receiver.listen("inproc://here")
sender.dial("inproc://here")
sender.send(bytes(1 << 20))
assert len(receiver.recv(30)) == 1 << 20
sender.close()
receiver.close()
assert not sys._is_gil_enabled()
print("off")
"""


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_no_module_turns_the_gil_on() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "off", done.stderr


@pytest.fixture
def name() -> Iterator[str]:
    name = f"/mstest-{uuid.uuid4().hex[:12]}"
    yield name
    shm.unlink_memory(name)
    assert not os.path.exists(f"/dev/shm{name}")


def test_named_memory_is_made_once_opened_and_removed(name: str) -> None:
    made = shm.create_memory(name, 8192)
    try:
        state = os.fstat(made)
        assert state.st_size == 8192
        assert state.st_mode & 0o777 == 0o600
        assert not os.get_inheritable(made)
        with pytest.raises(FileExistsError, match=name):
            shm.create_memory(name)
        again = shm.open_memory(name)
        try:
            assert os.path.samestat(os.fstat(again), state)
            os.pwrite(again, b"shared", 0)
            assert os.pread(made, 6, 0) == b"shared"
        finally:
            os.close(again)
    finally:
        os.close(made)
    shm.unlink_memory(name)
    shm.unlink_memory(name)
    with pytest.raises(FileNotFoundError, match=name):
        shm.open_memory(name)


@pytest.mark.parametrize("bad", ["", "/", "/a/b", "/" + "n" * 5000])
def test_what_is_no_name_is_refused(bad: str) -> None:
    with pytest.raises((ValueError, OSError)):
        shm.open_memory(bad)
    with pytest.raises((ValueError, OSError, ms.OutOfSharedMemory)):
        shm.create_memory(bad, 4096)


def test_memory_that_cannot_be_had_leaves_no_name(name: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises((ms.OutOfSharedMemory, ValueError)):
            shm.create_memory(name, 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.path.exists(f"/dev/shm{name}")
