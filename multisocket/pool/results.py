"""What the methods of a Pool give: results that come later, and iterators of them."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import TimeoutError as PoolTimeoutError
from types import GenericAlias
from typing import Any, Generic, TypeVar

from ..errors import Error
from ..late import log
from . import parcel
from .crew import BATCH_SECONDS, Crew
from .errors import Terminated
from .forms import DONE, IN_PARTS, MAP, ONE, OUTCOME, UNSENDABLE
from .functions import Function
from .tasks import Payload, Source, Task, Valued, as_failure, without_frames

# Tasks of an imap for each worker, however large they are: so that none is idle.
_LEAST_AHEAD = 4
# Bytes of an imap's items and results, wherever they are until they are taken. Smaller ones than that are not counted.
_MOST_BYTES = 256 << 20
_SMALL = 4096
# Small results that are taken out together.
_FETCH = 64

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ErrorCallback = Callable[[BaseException], object]


def _call_back(callback: Callable[[Any], object] | None, value: Any) -> None:
    if callback is None:
        return
    try:
        callback(value)
    except Exception:
        log.exception("a callback of a pool's task raised an error")


class AsyncResult(Generic[T]):
    """A result that comes later.

    :param callback: called with the result, in a thread of the pool; it must return soon.
    :param error_callback: the same with the error.
    """

    def __init__(
        self, callback: Callable[[T], object] | None = None, error_callback: ErrorCallback | None = None
    ) -> None:
        self._event = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._callback = callback
        self._error_callback = error_callback
        self._pool: Any = None
        """Lives as long as the result is waited for."""

    def ready(self) -> bool:
        """Whether it is there, or has failed."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether it has not failed.

        :raises ValueError: it is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} is not ready: wait for it first")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Until it is ready.

        :param timeout: seconds; None waits for ever.
        """
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> T:
        """The result.

        :param timeout: seconds; None waits for ever.
        :raises multiprocessing.TimeoutError: it was not ready in that time.
        :raises Exception: what the task has raised; ``WorkerDied``, ``TaskTimeout``.
        """
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeoutError(f"no result within {timeout} s")
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def _finish(self, value: T) -> None:
        self._value = value
        _call_back(self._callback, value)
        self._event.set()
        self._pool = None

    def _fail(self, error: BaseException) -> None:
        self._error = error = as_failure(error)
        _call_back(self._error_callback, error)
        self._event.set()
        self._pool = None

    __class_getitem__: Any = classmethod(GenericAlias)


class PoolTask(Valued):
    """A task whose result cannot be sent fails as ``multiprocessing.Pool`` has it."""

    __slots__ = ()

    def refusal(self, error: BaseException, told: BaseException) -> BaseException:
        """See :class:`Valued`."""
        return told


class Apply(PoolTask):
    """One call."""

    __slots__ = ("_result",)

    def __init__(self, function: Function, kind: int, payload: Payload, result: AsyncResult[Any]) -> None:
        super().__init__(function, kind, payload)
        self._result = result

    def finish(self, value: Any) -> None:
        """See :class:`Valued`."""
        self._result._finish(value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        self._result._fail(error)


# ---------------------------------------------------------------------------------------------------------------------
# map


class MapResult(AsyncResult[list[T]]):
    """The results of a map, in a list."""

    def __init__(
        self, length: int, callback: Callable[[list[T]], object] | None, error_callback: ErrorCallback | None
    ) -> None:
        super().__init__(callback, error_callback)
        self._value = [None] * length
        self._left = length
        self._first_error: BaseException | None = None
        self._lock = threading.Lock()
        if not length:
            self._event.set()

    def _set_chunk(self, start: int, values: list[T]) -> None:
        self._value[start : start + len(values)] = values
        self._settle(len(values))

    def _fail(self, error: BaseException) -> None:
        self._fail_items(self._left, error)

    def _fail_items(self, items: int, error: BaseException) -> None:
        self._first_error = self._first_error or error
        self._settle(items)

    def _settle(self, items: int) -> None:
        """So many are done. It is ready when all are, even if one has failed: then nothing of it runs any more."""
        with self._lock:
            self._left -= items
            is_done = not self._left
        if not is_done:
            return
        if self._first_error is None:
            self._finish(self._value)
        else:
            super()._fail(self._first_error)


class _Chunk(PoolTask):
    """Some items of a map."""

    __slots__ = ("_items", "_map", "_start")

    def __init__(self, items: Sequence[Any], start: int, its_map: Map) -> None:
        super().__init__(its_map.function, its_map.kind, parcel.pack(items))
        self._items = len(items)
        self._start = start
        self._map = its_map

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """See :class:`Task`."""
        self._map.learn(self._items, OUTCOME.unpack_from(content)[4])
        super().outcome(what, flags, content)

    def finish(self, value: Any) -> None:
        """See :class:`Valued`."""
        self._map.result._set_chunk(self._start, value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        self._map.result._fail_items(self._items, error)


class Map(Source):
    """A map's chunks, as they are needed. Unless their size is given, they become as large as their items are short:
    so few are needed for short items, and long ones are spread evenly.

    :param items: what the function is called with.
    :param kind: MAP or STAR.
    :param chunksize: items of a chunk; None: as said.
    :param workers: that share them.
    """

    # A chunk takes so long, where there is enough.
    _SECONDS = 5 * BATCH_SECONDS
    # At the most a part of what is left, for each worker.
    _SHARE = 4

    def __init__(
        self,
        function: Function,
        kind: int,
        items: Sequence[Any],
        chunksize: int | None,
        workers: int,
        result: MapResult[Any],
    ) -> None:
        self.function = function
        self.kind = kind
        self.result = result
        self._items = items
        self._chunksize = chunksize
        self._workers = workers
        self._at = 0
        self._given = 0
        self._seconds: float | None = None

    def next_task(self) -> Task | None:
        """See :class:`Source`."""
        if self._at < len(self._items):
            start = self._at
            chunk = self._items[start : start + self._next_size()]
            task = _Chunk(chunk, start, self)
            self._at += len(chunk)
            self._given += 1
            return task
        return None

    def _next_size(self) -> int:
        if self._chunksize is not None:
            return self._chunksize
        # Careful at first: chunks double only when each worker has had one.
        most = 1 << min(self._given // self._workers, 40)
        share = -(-(len(self._items) - self._at) // (self._SHARE * self._workers))
        by_time = most if self._seconds is None else int(self._SECONDS / self._seconds)
        return max(1, min(most, share, by_time))

    def learn(self, items: int, microseconds: int) -> None:
        """So long did some items take."""
        seconds = max(microseconds, 1) / 1e6 / items
        self._seconds = seconds if self._seconds is None else 0.5 * (self._seconds + seconds)

    def fail(self, error: BaseException) -> None:
        """See :class:`Source`."""
        left = len(self._items) - self._at
        self._at = len(self._items)
        if left:
            self.result._fail_items(left, error)


# ---------------------------------------------------------------------------------------------------------------------
# imap


def _counted(size: int) -> int:
    """Bytes of something as they count: of small things only the number does."""
    return size if size >= _SMALL else 0


def _size_of(came: Any) -> int:
    return 0 if isinstance(came, BaseException) else _counted(len(came[2]))


class _Item(PoolTask):
    """An item of an imap, or a chunk of them."""

    __slots__ = ("_iterator", "_number", "_size")

    def __init__(
        self, function: Function, kind: int, payload: Payload, number: int, iterator: IMapIterator[Any]
    ) -> None:
        # There are many of them, so the steps of the base classes are done here.
        self.function = function
        self.kind = kind
        self.payload = payload
        self.tries = 0
        self._iterator = iterator
        self._number = number
        self._size = _counted(parcel.size_of(payload))

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """See :class:`Task`. The object is made by who wants it, in its own thread."""
        self._iterator._put(self._number, (what, flags, content), self._size, _counted(len(content)))

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        self._iterator._put(self._number, error, self._size, 0)


def _value_of(what: int, flags: int, content: parcel.Content) -> Any:
    """The object that has come.

    :raises BaseException: what the task has raised.
    """
    value = parcel.unpack(content, OUTCOME.size, bool(flags & IN_PARTS))
    if what == DONE:
        return value
    raise as_failure(without_frames(value[1] if what == UNSENDABLE else value))  # a pair, see forms.py


class _Ahead:
    """What is on its way between who reads items and who takes results. It is bounded: tasks by their number, and by
    their bytes when they are large.

    :param most: tasks whose results have not been taken, at the most.
    :param least: so many of them may be on their way, however large they are.
    """

    def __init__(self, most: int, least: int) -> None:
        self._most = most
        self._least = least
        self.lock = threading.Lock()
        self._left = threading.Condition(self.lock)
        self._is_waiting = False
        # The reader's alone; all that follows only with the lock.
        self.given = 0
        self._heard = self.taken = 0
        self.bytes = 0
        self._result_size: float | None = None

    def give(self, size: int) -> int:
        """A task is made of an item of so many bytes: its number."""
        number = self.given
        self.given += 1
        if size:
            with self.lock:
                self.bytes += size
        return number

    def hear(self, item_size: int, size: int) -> None:
        """Its result has come, of so many bytes. With the lock."""
        self._heard += 1
        if size or item_size or self._result_size is None:
            self.bytes += size - item_size
            self._result_size = size if self._result_size is None else max(size, 0.9 * self._result_size)

    def take(self, size: int) -> None:
        """A result is taken. With the lock."""
        self.taken += 1
        self.bytes -= size
        if self._is_waiting:
            self._left.notify()

    def has_room(self) -> bool:
        """Whether another task may be given."""
        ahead = self.given - self.taken
        if ahead < self._least:
            return True
        if ahead >= self._most:
            return False
        # Of results that have not come it is believed that they are as large as those that have.
        coming = (self._result_size or 0.0) * (self.given - self._heard)
        return self._result_size is not None and self.bytes + coming <= _MOST_BYTES

    def await_room(self, timeout: float) -> bool:
        """Whether there is, within so many seconds."""
        with self.lock:
            self._is_waiting = True
            has_room = self.has_room() or (self._left.wait(timeout) and self.has_room())
            self._is_waiting = False
            return has_room


class IMapIterator(Generic[T_co]):
    """Gives results as they come. A thread reads the items, as fast as results are taken: a source may be endless.

    :param crew: that does the work.
    :param ahead: tasks whose results have not been taken, at the most.
    """

    def __init__(self, crew: Crew, ahead: int, chunks: bool) -> None:
        self._crew = crew
        self._chunks = chunks
        self._ahead = _Ahead(ahead, _LEAST_AHEAD * crew.processes)
        # What is for whoever takes results next, without a lock.
        self._mine: deque[Any] = deque()
        # Guards all that follows.
        self._lock = self._ahead.lock
        self._came = threading.Condition(self._lock)
        self._ready: deque[Any] = deque()
        self._waiting = 0
        self._length: int | None = None
        self._pool: Any = None
        """Lives as long as results may come."""

    def _start(self, function: Function, items: Iterator[Any], kind: int) -> None:
        """Begins to read the items."""
        reader = _Reader(self, function, items, kind)
        self._crew.expect_more()
        threading.Thread(target=reader.run, name="multisocket-reader", daemon=True).start()

    # --- for the thread that reads the items ---

    def _end(self, error: BaseException | None) -> None:
        """There are no more items; or reading the next one has raised this."""
        if error is not None:
            self._put(self._ahead.give(0), error, 0, 0)
        with self._lock:
            self._length = self._ahead.given
            self._came.notify_all()

    # --- for the crew's thread ---

    def _put(self, number: int, came: Any, item_size: int, size: int) -> None:
        with self._lock:
            self._ahead.hear(item_size, size)
            self._enter(number, came)
            if self._waiting:
                self._came.notify()

    def _enter(self, number: int, came: Any) -> None:
        self._ready.append(came)

    # --- for who takes them ---

    def __iter__(self) -> IMapIterator[T_co]:
        return self

    def next(self, timeout: float | None = None) -> T_co:
        """The next result.

        :param timeout: seconds; None waits for ever.
        :raises multiprocessing.TimeoutError: none came in that time.
        :raises Exception: what the task has raised; ``WorkerDied``, ``TaskTimeout``.
        """
        came = None
        while came is None:
            with contextlib.suppress(IndexError):
                came = self._mine.popleft()
            if came is None:
                self._fetch(timeout)
        if isinstance(came, BaseException):
            raise came
        if type(came) is _Value:  # of a chunk
            return came.value  # type: ignore[no-any-return]
        value = _value_of(*came)
        if not self._chunks:
            return value  # type: ignore[no-any-return]
        self._mine.extendleft(map(_Value, reversed(value)))
        return self.next(timeout)

    __next__ = next

    def _fetch(self, timeout: float | None) -> None:
        """Moves what has come to where it is taken without a lock: some small results, or a large one."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._ready:
                if self._ahead.taken == self._length:
                    self._pool = None
                    raise StopIteration
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise PoolTimeoutError(f"no result within {timeout} s")
                self._waiting += 1
                try:
                    self._came.wait(left)
                finally:
                    self._waiting -= 1
            for _ in range(min(len(self._ready), _FETCH)):
                came = self._ready.popleft()
                self._mine.append(came)
                size = _size_of(came)
                self._ahead.take(size)
                if size:
                    break
            if self._waiting and self._ahead.taken == self._length:  # others wait for what will not come
                self._came.notify_all()


class _Value:
    """One of the results of a chunk."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Reader:
    """Reads the items of an imap, in a thread of its own; until nobody has the iterator any more."""

    def __init__(self, iterator: IMapIterator[Any], function: Function, items: Iterator[Any], kind: int) -> None:
        self._iterator = weakref.ref(iterator)
        self._ahead = iterator._ahead
        self._crew = iterator._crew
        self._function = function
        self._items = items
        self._kind = kind
        self._is_bounded = True

    def run(self) -> None:
        """The thread."""
        try:
            self._read()
        finally:
            self._crew.expect_no_more()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._give(item):
                    return
        except Error as raised:  # the pool has ended: where that was told refers to the iterator
            error = raised.with_traceback(None)
        except BaseException as raised:
            error = raised
        iterator = self._iterator()
        if iterator is not None:
            iterator._end(error)
        # Its traceback refers to these.
        del iterator, error
        self._crew.hurry()

    def _give(self, item: Any) -> bool:
        """False: nobody wants more."""
        if not (self._ahead.has_room() or self._finds_room()):
            return False
        iterator = self._iterator()
        if iterator is None:
            return False
        try:
            packed = parcel.pack(item)
        except Exception as error:  # it cannot be pickled: only this one fails
            iterator._put(self._ahead.give(0), error, 0, 0)
            return True
        number = self._ahead.give(_counted(parcel.size_of(packed)))
        task = _Item(self._function, self._kind, packed, number, iterator)
        try:
            self._crew.add(task, is_expected=True)
        except Exception as error:  # the pool has ended, or has no worker and cannot start one
            task.fail(error.with_traceback(None))  # that refers to the iterator
            iterator._end(None)
            return False
        return True

    def _finds_room(self) -> bool:
        """False: nobody has the iterator any more."""
        self._crew.hurry()
        while self._is_bounded and not self._ahead.await_room(0.1):
            if self._iterator() is None:
                return False
            if self._crew.is_over:
                raise Terminated("the pool has ended")
            if self._crew.is_closing:  # nobody may be there to take results, but all are to be done
                self._is_bounded = False
        return True


class IMapUnorderedIterator(IMapIterator[T_co]):
    """Gives results in the order in which they come."""


class IMapOrderedIterator(IMapIterator[T_co]):
    """Gives results in the order of the items."""

    def __init__(self, crew: Crew, ahead: int, chunks: bool) -> None:
        super().__init__(crew, ahead, chunks)
        self._early: dict[int, Any] = {}
        self._next = 0

    def _enter(self, number: int, came: Any) -> None:
        self._early[number] = came
        while self._next in self._early:
            self._ready.append(self._early.pop(self._next))
            self._next += 1


def as_items(iterable: Iterable[Any], chunksize: int) -> tuple[int, Iterator[Any]]:
    """How a function is called with an imap's items, and those."""
    if chunksize == 1:
        return ONE, iter(iterable)
    return MAP, _chunked(iter(iterable), chunksize)


def _chunked(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := [item for _, item in zip(range(size), items, strict=False)]:
        yield chunk
