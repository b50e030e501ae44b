"""What workers do in tests. This module is quickly imported: workers that are not forked do so each time."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONG = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def count(path: str) -> int:
    """Notes that it was called; how often it was before."""
    with open(path, "ab") as file:
        file.write(b".")
        return file.tell() - 1


def square(x: int) -> int:
    return x * x


def kill_self(number: int) -> None:
    faulthandler.disable()  # it would tell of a SIGSEGV at length
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def exit_with(code: int) -> None:
    os._exit(code)


def fork_and_die(path: str) -> None:
    child = os.fork()
    if not child:
        time.sleep(LONG)
        os._exit(0)
    Path(path).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_first(path: str, times: int, x: int) -> int:
    if count(path) < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def note(path: str, deadly: int, i: int) -> int:
    """Notes each execution by a line, written in one step."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % i)
    os.close(file)
    if i == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def hold_the_gil() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def sleep_if(deadly: int, i: int) -> int:
    if i == deadly:
        time.sleep(LONG)
    return i


def refuse(kind: type[Exception]) -> None:
    raise kind("not today")


class Refused(Exception):
    pass


class Unsendable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("this error cannot be pickled")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("this cannot be pickled")


def nap(i: int) -> int:
    time.sleep(0.005)
    return i


def stop_self() -> int:
    os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


def wait_if(gate: str, waiting: int, i: int) -> int:
    if i == waiting:
        wait_for(lambda: os.path.exists(gate))
    return i


def await_others(path: str, n: int, i: int) -> int:
    if i == 0:
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path) >= n - 1)
    else:
        count(path)
    return i


def count_and_sleep(path: str) -> None:
    count(path)
    time.sleep(LONG)


# --- data ---


def echo(x: Any) -> Any:
    return x


def is_writable(array: Any) -> Any:
    """Of an argument, and the argument."""
    return array.flags.writeable, array


def fill(array: Any) -> Any:
    array += 1
    return array


def copied_so_far(array: Any) -> Any:
    from multisocket import shm

    return shm.copied_bytes(), array


def make_bytes(n: int) -> bytes:
    return bytes([n % 256]) * (1 << 20)


def make_array(n: int) -> Any:
    import numpy as np

    return np.full(1 << 17, n, "f8")


def is_same_object(pair: Any) -> bool:
    return pair[0] is pair[1]


class Unloadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return fail_to_load, ()


def fail_to_load() -> Any:
    raise ValueError("this cannot be unpickled")


def make_unpicklable() -> Any:
    return Unpicklable()


def make_unloadable() -> Any:
    return Unloadable()


def raise_unsendable() -> None:
    raise Unsendable("nobody will hear of this")


class TwoArguments(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def raise_two() -> None:
    raise TwoArguments("one", "two")


def raise_large() -> None:
    raise ValueError(b"x" * (1 << 20))


# --- functions ---


class Scaled:
    """Callable, and with a method."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def plus(self, x: int) -> int:
        return self.factor + x

    @classmethod
    def named(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @staticmethod
    def negative(x: int) -> int:
        return -x


class Counted:
    """A long function, which counts how often it is unpickled in each process."""

    loads = 0

    def __init__(self, padding: bytes) -> None:
        self.padding = padding

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.loads += 1
        self.__dict__.update(state)

    def __call__(self, _: int) -> tuple[int, int]:
        return os.getpid(), Counted.loads


def add(a: int, b: int, c: int = 0) -> int:
    return a + b + c


def slow_first_bytes(i: int) -> bytes:
    if not i:
        time.sleep(0.2)
    return make_bytes(i)


def die_of(argument: Any) -> None:
    os._exit(1)


class Counter_:  # noqa: N801 (collections has the name)
    """Changes when it is called."""

    def __init__(self, padding: bytes) -> None:
        self.padding = padding
        self.count = 0

    def increment(self, _: int) -> int:
        self.count += 1
        return self.count


def append_to(items: list[int], i: int) -> int:
    items.append(i)
    return len(items)


def die_unless_first(path: str) -> None:
    """An initializer that only one worker survives."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os._exit(1)
