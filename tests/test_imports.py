"""What an import loads. What takes long waits until it is needed; `python -m bench.imports` tells how long it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each takes a good part of the time that `import multisocket` may take in all.
NEVER = (
    "asyncio", "cloudpickle", "dask", "joblib", "numpy", "rich", "ssl", "tqdm", "uvloop", "websockets", "http.client",
)  # fmt: skip
LATE = (
    "ast", "concurrent.futures", "dataclasses", "datetime", "hashlib", "hmac", "inspect", "json", "logging", "msgpack",
    "multiprocessing", "pathlib", "pickle", "random", "secrets", "selectors", "socket", "subprocess", "tempfile",
    "traceback", "urllib.parse", "multisocket.aio", "multisocket.pool", "multisocket.protocol",
    "multisocket.transport.ipc", "multisocket.transport.tcp", "multisocket.transport.tls", "multisocket.transport.ws",
)  # fmt: skip
LATE_FOR_POOLS = (
    "ast", "dataclasses", "datetime", "hashlib", "hmac", "inspect", "msgpack", "secrets", "multisocket.aio",
    "multisocket.pool.joblib", "multisocket.pool.pipeline", "multisocket.protocol", "multisocket.transport.tcp",
)  # fmt: skip


# What it is built on, and what that loads differs between versions of Python.
BUILT_ON = "typing, contextlib, functools, threading, weakref, re, struct"
POOLS_BUILT_ON = f"{BUILT_ON}, concurrent.futures.process, multiprocessing.pool, multiprocessing.popen_forkserver"

# An editable install has loaded some already, or does so when it is looked for.
CODE = """
import importlib.util, sys
importlib.util.find_spec("multisocket")
wanted = {wanted!r}
for name in wanted:
    for loaded in list(sys.modules):
        if loaded == name or loaded.startswith(name + "."):
            del sys.modules[loaded]
import {modules}
print(*[name for name in wanted if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("module", "late", "built_on"),
    [("multisocket", NEVER + LATE, BUILT_ON), ("multisocket.pool", NEVER + LATE_FOR_POOLS, POOLS_BUILT_ON)],
)
def test_an_import_loads_no_more_than_it_needs(module: str, late: tuple[str, ...], built_on: str) -> None:
    loaded = _printed(CODE.format(wanted=late, modules=module)).split()
    assert [name for name in loaded if name not in _printed(CODE.format(wanted=late, modules=built_on)).split()] == []


def test_what_is_loaded_late_is_found() -> None:
    code = (
        "from multisocket import pool; print(pool.Stage.__module__, 'Pipeline' in dir(pool), pool.StageError.__name__)"
    )
    assert _printed(code) == "multisocket.pool True StageError"
    assert _printed("from multisocket.pool import *; print(Run.__module__, Pool.__name__)") == "multisocket.pool Pool"
    assert "no attribute 'Pipelin'" in _printed(
        "import multisocket.pool\ntry: multisocket.pool.Pipelin\nexcept AttributeError as error: print(error)"
    )


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
