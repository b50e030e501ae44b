"""Stages of a pipeline: what they are made of, and what is known of them while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ..errors import BadOption, Error
from . import parcel
from .functions import name_of
from .pool import check_numbers

if TYPE_CHECKING:
    from typing_extensions import Never
    from typing_extensions import TypeVar as DefaultTypeVar

    Failed_co = DefaultTypeVar("Failed_co", covariant=True, default=Never)
else:
    Failed_co = TypeVar("Failed_co", covariant=True)

A = TypeVar("A")
B = TypeVar("B")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

RAISE, SKIP, YIELD = "raise", "skip", "yield"
OnError = Literal["raise", "skip", "yield"]


@dataclass(frozen=True)
class Stage(Generic[In_contra, Out_co, Failed_co]):
    """A function that some worker processes apply to each item.

    :param function: called with an item; gives the next stage's item. If it is a generator function, each value that it
        yields is an item of the next stage: many, one or none.
    :param workers: processes.
    :param ordered: results leave in the order in which items came; otherwise as they are ready.
    :param batch: items that a worker is given at a time; None: many short ones, single long ones.
    :param initializer: called with ``initargs`` once in each worker: for what it shall keep between items.
    :param retries: how often an item is tried again whose function has raised, or whose worker died. A generator starts
        anew then, and as many values as it had given already are left out.
    :param on_error: what happens with an item that fails. ``"raise"``: the pipeline ends, and the error is raised where
        the result would have come. ``"skip"``: it is left out, counted, logged, and kept in ``Run.errors``.
        ``"yield"``: a :class:`StageError` comes out of the pipeline in its place; later stages do not see it.
    :param task_timeout: seconds after which the worker of an item is killed, and the item fails (``TaskTimeout``). Of a
        generator they include those in which it waits until its values are taken. As in a pool, imports do not count.
    :param name: for statistics and errors; None: that of the function.
    :raises BadOption: something is out of range.

    For type checkers it is a ``Stage[item, result]``, and a ``Stage[item, result, StageError]`` where failed items come
    out of the pipeline. A function that says it returns an ``Iterator`` or ``Generator`` is taken for a generator
    function.
    """

    function: Callable[[In_contra], Any]
    workers: int = 1
    ordered: bool = True
    batch: int | None = None
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    retries: int = 0
    on_error: OnError = "raise"
    task_timeout: float | None = None
    name: str | None = None

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Stage[A, B, StageError],
            function: Callable[[A], Iterator[B]],
            workers: int = 1,
            ordered: bool = True,
            batch: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            retries: int = 0,
            *,
            on_error: Literal["yield"],
            task_timeout: float | None = None,
            name: str | None = None,
        ) -> None: ...

        @overload
        def __init__(
            self: Stage[A, B, Never],
            function: Callable[[A], Iterator[B]],
            workers: int = 1,
            ordered: bool = True,
            batch: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            retries: int = 0,
            on_error: Literal["raise", "skip"] = "raise",
            task_timeout: float | None = None,
            name: str | None = None,
        ) -> None: ...

        @overload
        def __init__(
            self: Stage[A, B, StageError],
            function: Callable[[A], B],
            workers: int = 1,
            ordered: bool = True,
            batch: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            retries: int = 0,
            *,
            on_error: Literal["yield"],
            task_timeout: float | None = None,
            name: str | None = None,
        ) -> None: ...

        @overload
        def __init__(
            self: Stage[A, B, Never],
            function: Callable[[A], B],
            workers: int = 1,
            ordered: bool = True,
            batch: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            retries: int = 0,
            on_error: Literal["raise", "skip"] = "raise",
            task_timeout: float | None = None,
            name: str | None = None,
        ) -> None: ...

        def __init__(
            self,
            function: Callable[[Any], Any],
            workers: int = 1,
            ordered: bool = True,
            batch: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            retries: int = 0,
            on_error: OnError = "raise",
            task_timeout: float | None = None,
            name: str | None = None,
        ) -> None: ...

    else:
        __class_getitem__ = classmethod(GenericAlias)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise BadOption(f"a stage is made of a function, not of {self.function!r}")
        if self.on_error not in (RAISE, SKIP, YIELD):
            raise BadOption(f"on_error is one of {RAISE!r}, {SKIP!r}, {YIELD!r}, not {self.on_error!r}")
        if self.batch is not None and not 1 <= self.batch <= _MOST_BATCH:
            raise BadOption(f"batch is None or 1 to {_MOST_BATCH} items, not {self.batch!r}")
        try:
            check_numbers(self.workers, None, self.retries, self.task_timeout, name="workers")
        except ValueError as error:
            raise BadOption(str(error)) from None

    @property
    def label(self) -> str:
        """Its name, or that of its function."""
        return self.name or name_of(self.function)


AnyStage = Stage[Any, Any, Any]

_MOST_BATCH = 4096


class StageError(Error):
    """An item failed in a stage.

    :ivar stage: the stage's name.
    :ivar error: what was raised (also the ``__cause__``); ``WorkerDied`` or ``TaskTimeout``, perhaps.
    """

    def __init__(self, stage: str, error: BaseException, payload: parcel.Packed | memoryview | None = None) -> None:
        super().__init__(f"stage {stage}: {type(error).__name__}: {error}")
        self.stage = stage
        self.error = error
        self.__cause__ = error
        self._payload = payload

    @property
    def item(self) -> Any:
        """The item that failed, as the stage was given it; None when it is not known any more."""
        return None if self._payload is None else parcel.opened(self._payload)

    def keep(self) -> int:
        """Takes the item out of the shared memory in which it may lie; its bytes."""
        if isinstance(self._payload, memoryview):
            self._payload = memoryview(bytearray(self._payload))
        return self._size

    def forget(self) -> int:
        """The item is not known any more; the bytes that it had."""
        size, self._payload = self._size, None
        return size

    @property
    def _size(self) -> int:
        return 0 if self._payload is None else parcel.size_of(self._payload)

    def __reduce__(self) -> tuple[Any, ...]:
        return StageError, (self.stage, self.error)


@dataclass(frozen=True)
class StageStats:
    """How a stage is doing.

    :ivar name: of the stage.
    :ivar workers: processes.
    :ivar received: items that came.
    :ivar done: items that are done, failed ones included.
    :ivar failed: items that failed for good.
    :ivar retried: how often an item was tried again.
    :ivar queued: items that wait for a worker, or are with one.
    :ivar ready: results that wait for those of earlier items, or for room behind the stage.
    :ivar rate: items done a second, since the first one came.
    :ivar busy: share of the workers' time that went into the function, 0 to 1. The stage where it is highest is the one
        to give more workers.
    """

    name: str
    workers: int
    received: int
    done: int
    failed: int
    retried: int
    queued: int
    ready: int
    rate: float
    busy: float
