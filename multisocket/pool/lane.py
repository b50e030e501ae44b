"""A lane: one stage of a running pipeline, in the process that runs it.

Items are put into a lane, given to its workers, and what comes of them leaves in order, or as it comes, for the next
lane as soon as that has room. Objects are not unpacked on the way: what a worker has sent goes to the next one as it
is, large ones without a copy.

Room is what bounds memory: a lane takes an item only while it holds few, wherever they are: waiting, with a worker,
waiting for an earlier one, or for room in the next lane. Whoever makes room pulls from the lane before. All lanes of a
run share one lock.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Protocol, Union

from . import parcel
from .errors import InitializerFailed, Terminated
from .forms import DONE, ENDED, IN_PARTS, OUTCOME, PART, STREAM, UNSENDABLE
from .functions import Function
from .stage import RAISE, SKIP, Stage, StageError, StageStats
from .tasks import Payload, Source, Task

log = logging.getLogger("multisocket")

# Items that a lane holds: at least and at most so many for each worker.
_LEAST = 4
_MOST = 768
# Bytes that they have together, unless they are so few that workers would be idle.
_MOST_BYTES = 256 << 20


class Hands(Protocol):
    """Who does the work of a lane: a crew, or somebody else's executor."""

    def add(self, task: Task | Source) -> None:
        """Has a task done."""

    def hurry(self) -> None:
        """No more tasks come soon."""

    def read(self, slot: int, parts: int = 1) -> None:
        """Parts of an outcome have gone on."""

    def wanted(self, function: Function) -> int:
        """Tasks that are given out together."""

    def totals(self) -> tuple[int, float]:
        """Tasks that were done, and the seconds that they took."""

    def terminate(self) -> None:
        """Ends all work."""

    def join(self, timeout: float | None = None) -> bool:
        """Waits for that."""


class End:
    """Stands for the error that ends a run, in the place where it happened."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Part:
    """One of the values of a generator: its worker is told when it has gone on."""

    __slots__ = ("payload", "slot")

    def __init__(self, payload: Payload, slot: int) -> None:
        self.payload = payload
        self.slot = slot


Token = Union[bytes, "list[memoryview]", memoryview, StageError, End]
"""What goes from lane to lane: an object's parcel, or what has become of it."""


class _Item(Task):
    """An item with the workers of a lane."""

    __slots__ = ("lane", "number", "parts", "skipped")

    def __init__(self, lane: Lane, number: int, payload: Payload) -> None:
        super().__init__(lane.function, STREAM, payload)
        self.lane = lane
        self.number = number
        self.parts = 0
        self.skipped = 0

    def again(self) -> None:
        """See :class:`Task`."""
        self.lane.retried += 1
        self.skipped = max(self.skipped, self.parts)
        self.parts = 0

    def outcome(self, what: int, flags: int, content: parcel.Content) -> None:
        """See :class:`Task`."""
        if what in (DONE, PART, ENDED):
            self.lane.heard(self, what, flags, content)
        else:
            self.fail(_error_in(what, flags, content))

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        self.lane.heard_failure(self, error)


class Lane:
    """One stage at work.

    :param stage: what is done.
    :param function: its function, as workers are told of it.
    :param hands: who does it.
    :param lock: of the run.
    :param report: called with the error of an item that is skipped.
    :param changed: called when room was made, or something came out at the end.
    """

    def __init__(
        self,
        stage: Stage,
        function: Function,
        hands: Hands,
        lock: Any,
        report: Callable[[StageError], None],
        changed: Callable[[], None],
    ) -> None:
        self.stage = stage
        self.function = function
        self.hands = hands
        self.before: Lane | None = None
        self.after: Lane | None = None
        self.ready: deque[Token | Part] = deque()
        self.received = self.done = self.failed = self.retried = 0
        self._lock: Any = lock
        self._report = report
        self._changed = changed
        self._inside = 0
        self._bytes = 0
        self._began = 0.0
        # Of an ordered stage: what came before its turn, and which items are done.
        self._turn = 0
        self._early: defaultdict[int, list[Token | Part]] = defaultdict(list)
        self._ended: set[int] = set()

    # --- in ---

    @property
    def has_room(self) -> bool:
        """Whether it takes another item now. With the lock, as all here."""
        held = self._inside + len(self.ready)
        workers = self.stage.workers
        if held < workers + 1:
            return True
        most = workers * max(_LEAST, min(_MOST, 3 * self.hands.wanted(self.function)))
        return held < most and self._bytes < _MOST_BYTES

    @property
    def is_empty(self) -> bool:
        """Nothing is in it."""
        return not self._inside and not self.ready

    def put(self, token: Token) -> None:
        """Takes what came from the lane before, or from a source."""
        number = self.received
        self.received += 1
        self._inside += 1
        if isinstance(token, (StageError, End)):
            self._give(number, token)
            self._end(number, 0)
            return
        self._began = self._began or time.monotonic()
        self._bytes += parcel.size_of(token)
        try:
            self.hands.add(_Item(self, number, token))
        except Exception as error:
            self._give(number, End(error))
            self._end(number, parcel.size_of(token))

    # --- what workers say ---

    def heard(self, item: _Item, what: int, flags: int, content: parcel.Content) -> None:
        """It is done, or one of its values is there."""
        if what != ENDED:
            payload = _payload_of(flags, content)
        with self._lock:
            if what == PART:
                self._heard_part(item, payload, OUTCOME.unpack_from(content)[5])
                return
            if what == DONE:
                self._give(item.number, payload)
            self.done += 1
            self._end(item.number, parcel.size_of(item.payload))

    def _heard_part(self, item: _Item, payload: Payload, slot: int) -> None:
        item.parts += 1
        if item.parts <= item.skipped:  # it had come before the item was tried again
            self.hands.read(slot)
            return
        self._give(item.number, Part(payload, slot))
        self.move()

    def heard_failure(self, item: _Item, error: BaseException) -> None:
        """It has failed, this time."""
        with self._lock:
            if self._tries_again(item, error):
                return
            self.done += 1
            self.failed += 1
            self._settle(item, error)
            self._end(item.number, parcel.size_of(item.payload))

    def _tries_again(self, item: _Item, error: BaseException) -> bool:
        if isinstance(error, (InitializerFailed, Terminated)) or item.tries >= self.stage.retries:
            return False
        item.tries += 1
        item.again()
        try:
            self.hands.add(item)
        except Exception:
            return False
        return True

    def _settle(self, item: _Item, error: BaseException) -> None:
        """What is made of an item that has failed."""
        if self.stage.on_error == RAISE or isinstance(error, (InitializerFailed, Terminated)):
            self._give(item.number, End(error))
            return
        # Its worker may have written to what was not kept.
        is_unchanged = not isinstance(item.payload, memoryview) or self.stage.retries > 0
        failure = StageError(self.stage.label, error, item.payload if is_unchanged else None)
        if self.stage.on_error == SKIP:
            self._report(failure)
        else:
            self._give(item.number, failure)

    # --- out ---

    def _give(self, number: int, token: Token | Part) -> None:
        if self.stage.ordered and number != self._turn:
            self._early[number].append(token)
        else:
            self.ready.append(token)

    def _end(self, number: int, size: int) -> None:
        """Nothing more comes of this item."""
        self._inside -= 1
        self._bytes -= size
        if self.stage.ordered:
            self._ended.add(number)
            while self._turn in self._ended:
                self._ended.discard(self._turn)
                self._turn += 1
                self.ready.extend(self._early.pop(self._turn, ()))
        self.move()

    def move(self) -> None:
        """Passes on what the next lane has room for; then this one may have room."""
        after = self.after
        if after is None:
            self._changed()
        else:
            while self.ready and after.has_room:
                after.put(self.take())
        self._pull()

    def take(self) -> Token:
        """What leaves next."""
        token = self.ready.popleft()
        if not isinstance(token, Part):
            return token
        self.hands.read(token.slot)
        return token.payload

    def take_last(self) -> Token:
        """The same at the end of the run: nobody else pulls what comes after it."""
        token = self.take()
        self._pull()
        return token

    def _pull(self) -> None:
        """There may be room now."""
        if self.before is None:
            self._changed()
        elif self.before.ready and self.has_room:
            self.before.move()

    # --- counters ---

    def stats(self, now: float) -> StageStats:
        """How it is doing."""
        seconds = max(now - self._began, 1e-9) if self._began else 0.0
        _, busy = self.hands.totals()
        return StageStats(
            name=self.stage.label,
            workers=self.stage.workers,
            received=self.received,
            done=self.done,
            failed=self.failed,
            retried=self.retried,
            queued=self._inside,
            ready=len(self.ready),
            rate=self.done / seconds if seconds else 0.0,
            busy=min(1.0, busy / (seconds * self.stage.workers)) if seconds else 0.0,
        )


def _payload_of(flags: int, content: parcel.Content) -> Payload:
    """What a worker has sent, for the next one."""
    if not flags & IN_PARTS:
        return bytes(content[OUTCOME.size :])
    return memoryview(bytearray(content)) if isinstance(content, bytes) else content


def _error_in(what: int, flags: int, content: parcel.Content) -> BaseException:
    try:
        value = parcel.unpack(content, OUTCOME.size, bool(flags & IN_PARTS))
    except BaseException as error:
        return error
    raised = value[0] if what == UNSENDABLE else value
    return raised if isinstance(raised, BaseException) else TypeError(f"{raised!r} was raised")
