"""Names in shared memory, and who may still need them.

All names that a process creates start with one prefix, ``/ms-<12 hex digits>``. The first of them,
``<prefix>.guard``, is a file that the process keeps locked while it lives. The kernel drops the lock at the process's
end, however it ends, so anybody can tell a live prefix from a dead one, in any PID namespace. The lock is a POSIX
record lock (``fcntl``), and not a ``flock``, because a child made by fork does not inherit it: a dead owner is not
kept alive by its children.

The guard also lists the socket paths that the process has bound, a JSON line each (``["+", path]``, ``["-", path]``),
so that a janitor can remove those as well.

One trap of record locks: closing *any* descriptor of the file drops the process's lock, so a process never opens its
own guard a second time.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import os
import re
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from . import reclaim, shm
from .late import late

if TYPE_CHECKING:
    import json
    import socket
else:
    json = late("json")
    socket = late("socket")

T = TypeVar("T")

_DIRECTORY = "/dev/shm"
_LOCK_TIMEOUT = 2.0
_PF_EXITING = 4  # of the flags in /proc/<pid>/stat
_GUARD = re.compile(r"(ms-[0-9a-f]{12})\.guard")
_SEGMENT = re.compile(r"(ms-[0-9a-f]{12})-[0-9a-z]+")
_ARENA = re.compile(r"ms-[0-9a-f]{12}-[0-9]+a")


def at_exit(function: Callable[[], None], priority: int) -> None:
    """Has a function called when this process ends by itself; it may be called twice.

    A ``multiprocessing`` child made by fork ends without running ``atexit``, so it needs its own way.
    """
    atexit.register(function)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, function, exitpriority=priority)


class _Family:
    """This process's prefix, and the guard behind it."""

    def __init__(self) -> None:
        self.prefix, self._guard = _lock_new_guard()
        self.guard_path = _guard_path(self.prefix)
        self.number = reclaim.family_of(f"/{self.prefix}")
        self._numbers = itertools.count(1)
        self._paths: set[str] = set()
        self._lock = threading.Lock()
        shm.cleanup_add(self.guard_path)

    def new_name(self) -> str:
        return f"/{self.prefix}-{next(self._numbers)}"

    def add_path(self, path: str) -> None:
        with self._lock:
            self._paths.add(path)
            self._note("+", path)
        shm.cleanup_add(path)

    def remove_path(self, path: str) -> None:
        shm.cleanup_remove(path)
        with self._lock:
            self._paths.discard(path)
            if self._paths:
                self._note("-", path)
            else:
                os.ftruncate(self._guard, 0)

    def _note(self, sign: str, path: str) -> None:
        os.lseek(self._guard, 0, os.SEEK_END)
        os.write(self._guard, (json.dumps([sign, path]) + "\n").encode())

    def leave(self) -> None:
        """The process ends: nothing of it is left but what others remove."""
        shm.cleanup_remove(self.guard_path)
        with contextlib.suppress(OSError):
            os.unlink(self.guard_path)
        self.forget()

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._guard)


def _guard_path(prefix: str) -> str:
    return f"{_DIRECTORY}/{prefix}.guard"


def _lock_new_guard() -> tuple[str, int]:
    while True:
        prefix = f"ms-{os.urandom(6).hex()}"
        with contextlib.suppress(FileExistsError):
            guard = shm.create_memory(f"/{prefix}.guard")
            # A janitor may have found it before it was locked: then it is another file now, or none.
            if _try_lock(fcntl.lockf, guard) and _is_file(guard, _guard_path(prefix)):
                return prefix, guard
            os.close(guard)


def _try_lock(how: Callable[[int, int], object], fd: int) -> bool:
    """how: ``fcntl.lockf`` (ends with the process) or ``fcntl.flock`` (ends with the descriptor)."""
    try:
        how(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


_family: _Family | None = None
_family_lock = threading.RLock()


def _ours() -> _Family:
    global _family
    with _family_lock:
        if _family is None:
            _family = _Family()
            shm.set_holder(_family.number)
            at_exit(leave, priority=0)
            clean()
        return _family


def leave() -> None:
    """Removes this process's guard. Called at its end, when its Sockets are closed."""
    global _family
    with _family_lock:
        if _family is not None:
            reclaim.leave(_family.number)
            shm.set_holder(0)
            _family.leave()
            _family = None


def _forget_parents() -> None:
    global _family, _family_lock
    _family_lock = threading.RLock()
    if _family is not None:
        _family.forget()
        _family = None
        shm.set_holder(0)


shm.on_holder_needed(lambda: _ours())
os.register_at_fork(after_in_child=_forget_parents)


# --- for Sockets and transports ---


def new_segment(inbox_bytes: int, inbox_limit: int, pending_limit: int, longest: int) -> shm.Segment:
    """Makes a segment under a name of this process. Arguments as in ``Segment.create``.

    :raises OutOfSharedMemory: no memory for it.
    """
    return new_memory(lambda name: shm.Segment.create(name, inbox_bytes, inbox_limit, pending_limit, longest))


def new_memory(make: Callable[[str], T]) -> T:
    """Makes something in shared memory under a name of this process.

    :param make: gets the name.
    :returns: what it has made.
    """
    name = _ours().new_name()
    shm.cleanup_add(_path_of(name))
    try:
        return make(name)
    except BaseException:
        shm.cleanup_remove(_path_of(name))
        raise


def remove_segment(name: str) -> None:
    """Removes a name that :func:`new_memory` gave; who has it mapped keeps the memory."""
    shm.unlink_memory(name)
    shm.cleanup_remove(_path_of(name))


def _path_of(name: str) -> str:
    return _DIRECTORY + name


def guard_path() -> str:
    """The guard of this process, for those who want to know whether it lives."""
    return _ours().guard_path


def is_alive(family: int) -> bool:
    """Whether the process with this number of its prefix lives."""
    if _family is not None and family == _family.number:
        return True
    try:
        guard = os.open(_guard_path(f"ms-{family:012x}"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:  # cannot tell: believe that it lives
        return True
    try:
        return shm.is_locked(guard)
    finally:
        os.close(guard)


def is_segment_name(name: object) -> bool:
    """Whether it is a name as :func:`new_segment` makes them: a peer's word is not taken for it."""
    return isinstance(name, str) and name[:1] == "/" and _SEGMENT.fullmatch(name[1:]) is not None


def add_socket_path(path: str) -> None:
    """Notes that this process is about to bind a socket there."""
    _ours().add_path(os.path.abspath(path))


def remove_socket_path(path: str) -> None:
    """Takes back :func:`add_socket_path`."""
    if _family is not None:
        _family.remove_path(os.path.abspath(path))


def is_stale_socket(path: str, *, of_dead: bool = False) -> bool:
    """Whether it is a socket file that nobody listens on any more.

    :param of_dead: who has bound it has lost the lock of its guard. It may be ending right now: locks go some time
        before what a process listens on, which until then looks alive.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        if not of_dead:
            return False
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid != 0 and _is_ending(pid)


def _is_ending(pid: int) -> bool:
    """Whether a process, of which something was just there, is about to end, or has ended."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", errors="replace") as told:
            state = told.read().rpartition(")")[2].split()
    except (ProcessLookupError, FileNotFoundError):
        return True
    except OSError:
        return False
    return bool(int(state[6]) & _PF_EXITING)


@contextlib.contextmanager
def locked_folder_of(path: str) -> Iterator[None]:
    """Whoever binds a socket path, or removes a stale one, does it with its folder locked: no lock file is left.

    :raises OSError: there is no such folder, or it must not be read.
    """
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(fcntl.flock, folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        os.close(folder)


# --- the janitor ---


def clean() -> list[str]:
    """Removes what dead processes left: shared memory and stale socket paths.

    Only what belongs to nobody alive is touched. Runs by itself before a process makes its first Socket.

    :returns: the paths that were removed.
    """
    removed: list[str] = []
    for prefix in _prefixes():
        removed += clean_prefix(prefix)
    return removed


def clean_prefix(prefix: str) -> list[str]:
    """The same for one prefix; nothing happens while its process lives."""
    # Or it might take the guard of this process, just made, for somebody else's.
    with _family_lock:
        if _family is not None and prefix == _family.prefix:
            return []
        return _clean_others(prefix)


def _clean_others(prefix: str) -> list[str]:
    guard_path = _guard_path(prefix)
    try:
        guard = os.open(guard_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _remove_segments(prefix)
    except OSError:  # somebody else's
        return []
    try:
        if not _try_lock(fcntl.lockf, guard):
            return []
        removed = _remove_stale_sockets(guard) + _remove_segments(prefix)
        if _is_file(guard, guard_path):
            removed += _remove(guard_path)
        return removed
    finally:
        os.close(guard)


def prefix_of(segment_name: str) -> str:
    """The prefix that a segment's name starts with."""
    return segment_name[1:].rpartition("-")[0]


def _prefixes() -> set[str]:
    found = (_GUARD.fullmatch(name) or _SEGMENT.fullmatch(name) for name in os.listdir(_DIRECTORY))
    return {match[1] for match in found if match}


def _remove_segments(prefix: str) -> list[str]:
    names = [name for name in os.listdir(_DIRECTORY) if name.startswith(f"{prefix}-")]
    # Others may still have to read what lies in an arena.
    arenas = [name for name in names if _ARENA.fullmatch(name)]
    buried = [f"{_DIRECTORY}/{name}" for name in arenas if reclaim.bury(f"/{name}", is_alive)]
    return buried + [path for name in names if name not in arenas for path in _remove(f"{_DIRECTORY}/{name}")]


def _remove_stale_sockets(guard: int) -> list[str]:
    return [path for noted in _noted_paths(guard) for path in _remove_stale_socket(noted)]


def _remove_stale_socket(path: str) -> list[str]:
    with contextlib.suppress(OSError), locked_folder_of(path):
        return _remove(path) if is_stale_socket(path, of_dead=True) else []
    return []


def _noted_paths(guard: int) -> Iterator[str]:
    bound: dict[str, None] = {}
    for line in os.pread(guard, os.fstat(guard).st_size, 0).splitlines():
        with contextlib.suppress(ValueError):  # a line that its writer did not finish
            sign, path = json.loads(line)
            bound.pop(path, None)
            if sign == "+":
                bound[path] = None
    return iter(bound)


def _remove(path: str) -> list[str]:
    try:
        os.unlink(path)
    except OSError:
        return []
    return [path]
