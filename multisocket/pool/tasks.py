"""Tasks, as the crew sees them."""

from __future__ import annotations

import builtins
import io
import pickle
from typing import Any, Union

from ..errors import BadMessage
from . import parcel
from .errors import WorkerDied
from .forms import CALL, DONE, IN_PARTS, ONE, OUTCOME, UNSENDABLE
from .functions import Function, Functions

Payload = Union[parcel.Packed, memoryview]  # noqa: UP007
"""What a task is given: a parcel; or a content in parts that lies where it was received."""


class Task:
    """Something to be done by some worker.

    :param function: that is called.
    :param kind: how, see forms.py.
    :param payload: with what.
    """

    __slots__ = ("function", "kind", "payload", "tries")

    is_started = False
    """Somebody was told that it is about to be done: it cannot be given up any more."""

    number = 0
    """Where it belongs among others, when it is to be done again."""

    is_kept = False
    """Whether somebody may keep what comes of it for long."""

    def __init__(self, function: Function, kind: int, payload: Payload) -> None:
        self.function = function
        self.kind = kind
        self.payload = payload
        self.tries = 0

    def start(self) -> bool:
        """It is about to be given to a worker. False: it is not wanted any more."""
        return True

    def again(self) -> None:
        """Its worker died, and it will be done once more."""

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """It is done, or part of it. In the crew's thread; must not raise."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """It will not be done. In whichever thread; must not raise."""
        raise NotImplementedError


class Source:
    """Tasks that are made when workers are free for them."""

    number = 0

    def next_task(self) -> Task | None:
        """None: there are no more. What it raises ends it: see :meth:`fail`."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """No more will be asked for."""
        raise NotImplementedError


class Valued(Task):
    """A task whose outcome is an object."""

    __slots__ = ()

    is_kept = True

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """See :class:`Task`."""
        try:
            value = parcel.unpack(content, OUTCOME.size, bool(flags & IN_PARTS))
        except BaseException as error:
            self.fail(without_frames(error))
            return
        if what == DONE:
            self.finish(value)
        else:
            self.fail(without_frames(self.refusal(*value) if what == UNSENDABLE else value))

    def finish(self, value: Any) -> None:
        """It is done."""
        raise NotImplementedError

    def refusal(self, error: BaseException, told: BaseException) -> BaseException:
        """How it fails when its result cannot be pickled.

        :param error: what pickle has raised.
        :param told: the same, as ``multiprocessing.Pool`` tells it.
        """
        return error


def without_frames(error: BaseException) -> BaseException:
    """Where it was raised is told by its cause, as text. Frames of this process (tblib, which comes with dask, makes
    some) would keep alive all that is at hand here, until the garbage collector comes."""
    seen: BaseException | None = error
    while seen is not None and seen.__traceback__ is not None:
        seen.__traceback__ = None
        seen = seen.__context__
    return error


def as_failure(error: BaseException) -> BaseException:
    """How what a task has raised is told, but for an Executor. ``SystemExit`` and the like are not raised where the
    result is waited for: they would silently end that program."""
    if isinstance(error, Exception):
        return error
    failure = WorkerDied(f"a task raised {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def packed_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, parcel.Packed]:
    """Kind and payload of a call."""
    if len(args) == 1 and not kwargs:
        return ONE, parcel.pack(args[0])
    return CALL, parcel.pack((args, kwargs))


def by_value(task: Task, functions: Functions) -> None:
    """Makes a task such that nothing in it must be found by its name in ``__main__``.

    :raises ImportError: that needs cloudpickle.
    """
    if isinstance(task.payload, memoryview):
        raise BadMessage("a large object of a class that is only in __main__ cannot be passed on between stages")
    if isinstance(task.payload, bytes):
        task.payload = parcel.pack_by_value(parcel.unpack(task.payload, 0, False))
    task.function = functions.by_value(task.function)


class _Opaque:
    """Stands for an object of which only the type's name is told."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Opaque:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __hash__(self) -> int:
        return 0


class _Plain(pickle.Unpickler):
    """Makes numbers, texts, and what holds them. Anything else could run the very code that has killed a worker: of
    that it tells the name."""

    def find_class(self, module: str, name: str) -> Any:
        """See ``pickle.Unpickler``."""
        if module == "builtins" and name in _HARMLESS:
            return getattr(builtins, name)
        return type(name, (_Opaque,), {})


_HARMLESS = ("range", "slice", "set", "frozenset", "complex", "bytearray")


def described(task: Task) -> str:
    """For people: the function, and what it was to be called with, if that is short and plain."""
    if not isinstance(task.payload, bytes):
        return f"{task.function.name} of {parcel.size_of(task.payload)} bytes"
    try:
        text = repr(_Plain(io.BytesIO(task.payload)).load())
    except Exception:
        text = f"{len(task.payload)} bytes"
    return f"{task.function.name} of {text if len(text) <= 200 else text[:200] + '…'}"
