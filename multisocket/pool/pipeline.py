"""Pipeline: stages of worker processes between sources and whoever takes the results."""

from __future__ import annotations

import _thread
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor as BaseExecutor
from inspect import isgeneratorfunction
from multiprocessing.context import BaseContext
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..errors import BadOption, Closed
from . import parcel
from .borrowed import Borrowed
from .crew import Crew
from .functions import Function
from .lane import End, Hands, Lane, Token, log_skipped
from .pool import context_of
from .progress import Display, display
from .stage import AnyStage, Stage, StageError, StageStats

if TYPE_CHECKING:
    from typing import TypeAlias

    A = TypeVar("A")
    B = TypeVar("B")
    C = TypeVar("C")
    D = TypeVar("D")
    E = TypeVar("E")
    F = TypeVar("F")
    G = TypeVar("G")
    F1 = TypeVar("F1")
    F2 = TypeVar("F2")
    F3 = TypeVar("F3")
    F4 = TypeVar("F4")
    F5 = TypeVar("F5")
    F6 = TypeVar("F6")

    # A generator function gives the next stage what it yields.
    Step: TypeAlias = Stage[A, B, F1] | Callable[[A], Iterator[B] | B]

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

# Errors of skipped items that are kept, and bytes of these items.
_KEPT_ERRORS = 1000
_KEPT_BYTES = 64 << 20
# Seconds between two looks of the display.
_REFRESH = 0.2
# Seconds after which somebody who waits looks whether all wait.
_STUCK = 0.05
# Seconds that a display has for its last words.
_LAST_WORDS = 5.0


class Pipeline(Generic[In_contra, Out_co]):
    """Stages, each with its worker processes, through which items go.

    ``for result in Pipeline(Stage(parse, workers=4), Stage(score, workers=2, ordered=False)).run(source): ...``

    :param stages: the first one gets the source's items, each other one what comes out of the one before. A function
        stands for ``Stage(function)``.
    :param context: of ``multiprocessing``, or the name of a start method; None: its default.
    :raises BadOption: there is no stage.

    For type checkers it is a ``Pipeline[item, result]``, and each stage takes what the one before gives.
    """

    stages: tuple[AnyStage, ...]
    """Its stages."""

    if TYPE_CHECKING:
        # Here and not at __init__: pyright finds no type for the failures of a plain function there.

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, B | F1]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            second: Step[B, C, F2],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, C | F1 | F2]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            second: Step[B, C, F2],
            third: Step[C, D, F3],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, D | F1 | F2 | F3]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            second: Step[B, C, F2],
            third: Step[C, D, F3],
            fourth: Step[D, E, F4],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, E | F1 | F2 | F3 | F4]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            second: Step[B, C, F2],
            third: Step[C, D, F3],
            fourth: Step[D, E, F4],
            fifth: Step[E, F, F5],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, F | F1 | F2 | F3 | F4 | F5]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, B, F1],
            second: Step[B, C, F2],
            third: Step[C, D, F3],
            fourth: Step[D, E, F4],
            fifth: Step[E, F, F5],
            sixth: Step[F, G, F6],
            /,
            *,
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, G | F1 | F2 | F3 | F4 | F5 | F6]: ...

        @overload
        def __new__(
            cls,
            first: Step[A, Any, Any],
            second: Step[Any, Any, Any],
            third: Step[Any, Any, Any],
            fourth: Step[Any, Any, Any],
            fifth: Step[Any, Any, Any],
            sixth: Step[Any, Any, Any],
            seventh: Step[Any, Any, Any],
            /,
            *more: Step[Any, Any, Any],
            context: BaseContext | str | None = None,
        ) -> Pipeline[A, Any]: ...

        def __new__(cls, *stages: Step[Any, Any, Any], context: BaseContext | str | None = None) -> Any:
            """As above."""

    else:

        def __init__(self, *stages, context=None):
            self._make(stages, context)

        __class_getitem__ = classmethod(GenericAlias)

    def _make(self, stages: tuple[Step[Any, Any, Any], ...], context: BaseContext | str | None) -> None:
        if not stages:
            raise BadOption("a pipeline has one stage at least")
        self.stages = tuple(stage if isinstance(stage, Stage) else Stage(stage) for stage in stages)
        self._context = context

    def run(
        self, *sources: Iterable[In_contra], executor: BaseExecutor | None = None, progress: bool | Display = False
    ) -> Run[Out_co]:
        """Starts workers and sends items through; gives results as they come.

        Items are read, each source in a thread of its own, only as fast as results are taken: sources may be endless.
        Several sources are mixed as they come. Large buffers of an item (arrays) are not copied before a worker gets
        them, so a source must not write to them afterwards. An item that cannot be pickled fails in the first stage.

        :param sources: iterables of items.
        :param executor: does the work, in place of worker processes of this machine: any
            ``concurrent.futures.Executor``, for example ``dask.distributed.Client.get_executor()``. There, all values
            that a generator gives for an item come at once, and ``task_timeout`` means nothing.
        :param progress: shows how stages are doing, by ``rich`` or ``tqdm``, if one is installed.
        :raises BadOption: one of these is something else.
        :raises Exception: (while iterating) what a source or a stage has raised.
        """
        for source in sources:
            if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
                raise BadOption(f"a source is an iterable of items, not {source!r}")
        if executor is not None and not hasattr(executor, "submit"):
            raise BadOption(f"executor is a concurrent.futures.Executor or None, not {executor!r}")
        if not isinstance(progress, bool) and not hasattr(progress, "update"):
            raise BadOption(f"progress is True, False, or a display with an update method, not {progress!r}")
        return Run(self.stages, sources, context_of(self._context), executor, progress)

    def __repr__(self) -> str:
        return f"<Pipeline {' → '.join(stage.label for stage in self.stages)}>"


class Run(Generic[Out_co]):
    """A pipeline at work: an iterator of its results. Ends its workers at the end, by ``close``, as a context manager,
    or when nobody has it any more."""

    def __init__(
        self,
        stages: tuple[AnyStage, ...],
        sources: tuple[Iterable[Any], ...],
        context: BaseContext,
        executor: BaseExecutor | None,
        progress: bool | Display,
    ) -> None:
        self._flow = _Flow(stages, sources, context, executor)
        # The garbage collector may call this in any thread, with whichever locks that holds.
        self._finalizer = weakref.finalize(self, _stop_elsewhere, self._flow)
        self._finalizer.atexit = False  # crews end themselves then
        try:
            self._flow.start()
            if progress:
                self._flow.show(display(_length(sources)) if progress is True else progress)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Out_co]:
        return self

    def __next__(self) -> Out_co:
        try:
            token = self._flow.take()
        except BaseException:  # Ctrl-C may have come in the middle of passing on something
            self.close()
            raise
        if token is None:
            self.close()
            raise StopIteration
        if isinstance(token, End):
            self.close()
            raise token.error
        result: Any = token if isinstance(token, StageError) else parcel.opened(token)
        return result  # type: ignore[no-any-return]

    @property
    def errors(self) -> list[StageError]:
        """Of items that were skipped (``on_error="skip"``): the last 1000."""
        return list(self._flow.errors)

    def stats(self) -> list[StageStats]:
        """How each stage is doing. The one with the highest ``busy`` is the bottleneck."""
        return self._flow.stats()

    def close(self) -> None:
        """Ends the workers, whatever they do. Twice is no error."""
        if self._finalizer.detach() is not None:
            self._flow.stop()

    def __enter__(self) -> Run[Out_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Flow:
    """What runs: sources, lanes, and what comes out of the last one. Does not refer to the Run, which ends it."""

    def __init__(
        self,
        stages: tuple[AnyStage, ...],
        sources: tuple[Iterable[Any], ...],
        context: BaseContext,
        executor: BaseExecutor | None,
    ) -> None:
        self.errors: deque[StageError] = deque(maxlen=_KEPT_ERRORS)
        self.count = 0
        self.is_over = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pid = os.getpid()
        self._over = threading.Event()
        self._display: threading.Thread | None = None
        self._kept: deque[StageError] = deque()
        self._kept_bytes = 0
        self._sources = sources
        self._reading = len(sources)
        self._last_stats: list[StageStats] = []
        self._lanes: list[Lane] = []
        try:
            for stage in stages:
                self._add_lane(stage, context, executor)
        except BaseException:
            self.stop()
            raise

    def _add_lane(self, stage: AnyStage, context: BaseContext, executor: BaseExecutor | None) -> None:
        hands, function = _hands_for(stage, context, executor)
        lane = Lane(stage, function, hands, self._lock, self._report, self._changed.notify_all)
        if self._lanes:
            lane.before = self._lanes[-1]
            self._lanes[-1].after = lane
        self._lanes.append(lane)

    def start(self) -> None:
        """Begins to read sources, when all workers are started."""
        for lane in self._lanes:
            if isinstance(lane.hands, Crew):
                lane.hands.start()
        for source in self._sources:
            threading.Thread(target=self._read, args=(source,), name="multisocket-source", daemon=True).start()

    # --- sources ---

    def _read(self, source: Iterable[Any]) -> None:
        error: BaseException | None = None
        try:
            for item in source:
                if not self._put(item):
                    return
        except BaseException as raised:
            error = raised
        with self._lock:
            if error is not None and not self.is_over:
                self._lanes[0].put(End(error))
            self._reading -= 1
            self._changed.notify_all()
        if not self.is_over:
            self._lanes[0].hands.hurry()

    def _put(self, item: Any) -> bool:
        """False: nobody wants more."""
        first = self._lanes[0]
        packed = _packed(item)
        skipped: StageError | None = None
        with self._lock:
            if not first.has_room:
                first.hands.hurry()
            while not first.has_room and not self.is_over:
                self._changed.wait()
            if self.is_over:
                return False
            if isinstance(packed, Exception):
                skipped = first.put_refused(packed)
            else:
                first.put(packed)
        log_skipped(skipped)
        return True

    # --- results ---

    def take(self) -> Token | None:
        """What comes next. None: there is no more."""
        self._check_process()
        last = self._lanes[-1]
        with self._lock:
            while not self.is_over:
                if last.ready:
                    self.count += 1
                    return last.take_last()
                if not self._reading and all(lane.is_empty for lane in self._lanes):
                    return None
                if self._changed.wait(self._patience()):
                    continue
                for lane in self._lanes:
                    if lane.may_be_stuck:
                        lane.unblock()
        return None

    def _patience(self) -> float | None:
        return _STUCK if any(lane.may_be_stuck for lane in self._lanes) else None

    @property
    def is_mine(self) -> bool:
        """Whether it was started in this process."""
        return os.getpid() == self._pid

    def _check_process(self) -> None:
        if not self.is_mine:
            raise Closed("this run belongs to the process that has started it")

    def _report(self, failure: StageError) -> None:
        """Keeps it; its item only as long as these are not too many bytes."""
        self.errors.append(failure)
        self._kept_bytes += failure.keep()
        self._kept.append(failure)
        while self._kept_bytes > _KEPT_BYTES or len(self._kept) > _KEPT_ERRORS:
            self._kept_bytes -= self._kept.popleft().forget()

    def stats(self) -> list[StageStats]:
        """Of each stage."""
        if not self.is_mine:
            return self._last_stats
        with self._lock:
            if not self.is_over:
                self._last_stats = [lane.stats(time.monotonic()) for lane in self._lanes]
            return self._last_stats

    # --- the display ---

    def show(self, shown: Display) -> None:
        """Shows how it is doing, until it is over."""
        self._display = threading.Thread(target=self._show, args=(shown,), name="multisocket-progress", daemon=True)
        self._display.start()

    def _show(self, shown: Display) -> None:
        with shown:
            while not self._over.wait(_REFRESH):
                shown.update(self.count, self.stats())
            shown.update(self.count, self.stats())

    # --- the end ---

    def stop(self) -> None:
        """Ends all. In a child that was forked it does nothing: there its threads and locks are not alive."""
        if not self.is_mine:
            return
        self.stats()
        with self._lock:
            self.is_over = True
            self._changed.notify_all()
        self._over.set()
        for lane in self._lanes:
            lane.hands.terminate()
        for lane in self._lanes:
            lane.hands.join()
        with self._lock:
            for lane in self._lanes:
                lane.clear()
        self._sources = ()
        if self._display is not None and self._display is not threading.current_thread():
            self._display.join(_LAST_WORDS)


def _stop_elsewhere(flow: _Flow) -> None:
    """Ends a run that nobody has any more, in a thread of its own, which holds no locks."""
    if flow.is_mine:
        _thread.start_new_thread(flow.stop, ())


def _packed(item: Any) -> parcel.Packed | Exception:
    """An item's parcel; or why there is none."""
    try:
        return parcel.pack(item)
    except Exception as error:
        return error


def _hands_for(stage: AnyStage, context: BaseContext, executor: BaseExecutor | None) -> tuple[Hands, Function]:
    if executor is not None:
        return Borrowed(executor, stage), Function(b"", stage.label)
    crew = Crew(
        stage.workers,
        context=context,
        initializer=stage.initializer,
        initargs=stage.initargs,
        task_timeout=stage.task_timeout,
        batch=stage.batch,
        # A generator of an ordered stage may have to begin anew: see Lane.unblock.
        keeps_payloads=stage.retries > 0 or (stage.ordered and isgeneratorfunction(stage.function)),
    )
    try:
        return crew, crew.functions.of(stage.function)
    except BaseException:
        crew.terminate()
        raise


def _length(sources: tuple[Iterable[Any], ...]) -> int | None:
    """Of all sources, if that is known."""
    try:
        return sum(len(source) for source in sources)  # type: ignore[arg-type, misc]
    except TypeError:
        return None
