"""Worker processes: those of ``multiprocessing``, but for a few things.

fork        no warning of other threads: what a worker does at first needs nothing that these may hold
spawn,      the main module is imported by the worker itself, once it can tell the pool what goes wrong with that;
forkserver  and only if that does not run the program once more: see ``main_module.py``
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
from collections import ChainMap
from multiprocessing import forkserver, popen_fork, popen_forkserver, popen_spawn_posix, process, spawn
from multiprocessing.context import BaseContext, ForkProcess, ForkServerProcess, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, Union

from .. import shm
from .parcel import can_pack_by_value

_OF_MAIN = ("init_main_from_name", "init_main_from_path")

Main = dict[str, str]
"""How a worker imports the main module: what ``multiprocessing.spawn`` takes for that. Empty: not at all."""


class _Names:
    """What a module has, but for some names.

    :param others: stand in place of the module's own.
    """

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _with(function: Any, **names: Any) -> Any:
    """The function, with some of its global names standing for something else."""
    assert isinstance(function, FunctionType)
    found = {**function.__globals__, **names}
    return FunctionType(function.__code__, found, function.__name__, function.__defaults__, function.__closure__)


def preparation_without_main(name: str) -> dict[str, Any]:
    """What a worker is told of this process, as ``multiprocessing.spawn`` has it."""
    return {key: value for key, value in spawn.get_preparation_data(name).items() if key not in _OF_MAIN}


_spawn_names = _Names(spawn, get_preparation_data=preparation_without_main)


class _ForkPopen(popen_fork.Popen):
    _launch = _with(popen_fork.Popen._launch, os=_Names(os, fork=shm.fork))  # type: ignore[attr-defined]


class _SpawnPopen(popen_spawn_posix.Popen):
    _launch = _with(popen_spawn_posix.Popen._launch, spawn=_spawn_names)  # type: ignore[attr-defined]


class _ForkServerPopen(popen_forkserver.Popen):
    _launch = _with(popen_forkserver.Popen._launch, spawn=_spawn_names)  # type: ignore[attr-defined]


class _Forked(ForkProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _ForkPopen(process_obj)


class _Spawned(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _SpawnPopen(process_obj)


class _ForkServed(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _ForkServerPopen(process_obj)


_OURS: dict[Any, Any] = {
    ForkProcess: _Forked,
    SpawnProcess: _Spawned,
    ForkServerProcess: _ForkServed,
}


def process_class(context: BaseContext) -> Any:
    """Of the workers that are started by it. A context of somebody else's has its own."""
    actual: Any = context.get_context()
    return _OURS.get(actual.Process, actual.Process)


def imports_main_itself(context: BaseContext) -> bool:
    """Whether a worker must import the main module, if that is needed: otherwise it has it, or it was imported by the
    time that it begins."""
    return process_class(context) in (_Spawned, _ForkServed)


# --- the fork server ---


_MAIN_PATH = "MULTISOCKET_MAIN"
# Before Python 3.14 it is documented, but not so.
_PRELOADS_MAIN = sys.version_info >= (3, 14)


def ensure_fork_server(main: Main) -> None:
    """Starts the process that forks workers, if there is none.

    It imports the main module, so that workers need not, where multiprocessing has it so; but only if they would do
    that, and whatever goes wrong with it is for them to tell: there, it would be the end of the server.
    """
    server: Any = forkserver._forkserver
    wanted = server._preload_modules
    path = main.get("init_main_from_path") if "__main__" in wanted and _PRELOADS_MAIN else None
    server._preload_modules = [*(name for name in wanted if name != "__main__"), "multisocket.pool.preload"]
    if path is not None:
        os.environ[_MAIN_PATH] = path
    try:
        server.ensure_running()
    finally:
        server._preload_modules = wanted
        os.environ.pop(_MAIN_PATH, None)


def preload() -> None:
    """What the fork server does at first."""
    path = os.environ.pop(_MAIN_PATH, None)
    if path is not None:
        with contextlib.suppress(BaseException):
            import_main({"init_main_from_path": path})


# --- what workers are given ---


class AfterMain:
    """An object that a worker unpickles only when it has imported the main module.

    :param has_main: whether it will. Otherwise what is in the main module goes by value, if cloudpickle is installed.
    """

    def __init__(self, value: Any, *, has_main: bool) -> None:
        self._value = value
        self._has_main = has_main

    def open(self) -> Any:
        """The object."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        by_value = not self._has_main and can_pack_by_value()
        packed = _dumps_by_value(self._value) if by_value else bytes(ForkingPickler.dumps(self._value))
        return _Packed, (packed,)


class _Packed:
    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def open(self) -> Any:
        return pickle.loads(self._packed)


def _dumps_by_value(value: Any) -> bytes:
    import cloudpickle

    out = io.BytesIO()
    pickler = cloudpickle.Pickler(out)
    # Queues, locks and connections may be given to a process that is being started, and to no other.
    pickler.dispatch_table = ChainMap(pickler.dispatch_table, ForkingPickler(io.BytesIO()).dispatch_table)
    pickler.dump(value)
    return out.getvalue()


Later = Union[AfterMain, _Packed]  # noqa: UP007
"""What a worker is given in place of it."""


# --- in workers ---


def is_importing_main() -> bool:
    """Whether this process is just importing the main module of another one."""
    return bool(getattr(process.current_process(), "_inheriting", False))


def import_main(main: Main) -> None:
    """Makes the main module of the pool's process known here.

    :raises BaseException: whatever that raises.
    """
    this: Any = process.current_process()
    this._inheriting = True  # so that nobody starts processes meanwhile
    try:
        spawn.prepare(main)
    finally:
        del this._inheriting
