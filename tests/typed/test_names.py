"""What is public names the package that users import it from, in tracebacks, and in pickles old and new."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

import multisocket as ms
from multisocket import pool

PACKAGES = ("multisocket", "multisocket.aio", "multisocket.pool", "multisocket.protocol", "multisocket.transport")


def _exported() -> Iterator[tuple[ModuleType, str, Any]]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield from ((package, one, getattr(package, one)) for one in package.__all__)


def test_what_is_exported_names_its_package() -> None:
    wrong = [
        (package.__name__, name, found.__module__)
        for package, name, found in _exported()
        if isinstance(found, (type, FunctionType)) and found.__module__ != package.__name__
    ]
    assert wrong == []


def test_what_is_exported_can_be_pickled_by_name() -> None:
    for package, name, found in _exported():
        if isinstance(found, (type, FunctionType)):
            dumped = pickle.dumps(found, protocol=0)
            assert f"c{package.__name__}\n{name}\n".encode() in dumped
            assert pickle.loads(dumped) is found


@pytest.mark.parametrize(
    "old",
    [
        "multisocket.errors.Timeout",
        "multisocket.errors.BadOption",
        "multisocket.message.Message",
        "multisocket.shm.Message",
        "multisocket.socket.Socket",
        "multisocket.connector.Pipe",
        "multisocket.aio.socket.Socket",
        "multisocket.protocol.reqrep.Rep",
        "multisocket.protocol.pubsub.Publication",
        "multisocket.pool.errors.WorkerDied",
        "multisocket.pool.stage.Stage",
        "multisocket.pool.stage.StageError",
        "multisocket.pool.pool.Pool",
        "multisocket.pool.executor.Executor",
    ],
)
def test_pickles_of_longer_names_can_be_read(old: str) -> None:
    module, _, name = old.rpartition(".")
    found = pickle.loads(f"c{module}\n{name}\n.".encode())
    assert any(found is one for _, _, one in _exported())


def test_objects_come_back_from_pickles() -> None:
    stage = pool.Stage(len, workers=3)
    assert pickle.loads(pickle.dumps(stage)) == stage
    error = pickle.loads(pickle.dumps(ms.Timeout("late")))
    assert (type(error), str(error)) == (ms.Timeout, "late")
    with ms.Socket() as sock:
        assert type(pickle.loads(pickle.dumps(sock))) is ms.Socket


def test_a_traceback_tells_the_name_to_catch() -> None:
    code = "import multisocket\nwith multisocket.Socket() as sock: sock.recv(timeout=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("multisocket.Timeout: ")
    assert 'File "multisocket/shm/endpoint.pxi", line ' in done.stderr


def test_reprs_tell_the_names() -> None:
    with pool.Pool(1) as workers:
        assert repr(workers).startswith("<multisocket.pool.Pool state=RUN")
    assert str(pool.AsyncResult[int]) == "multisocket.pool.AsyncResult[int]"
    assert str(ms.Message[bytes]) == "multisocket.Message[bytes]"
