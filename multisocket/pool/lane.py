"""A lane: one stage of a running pipeline, in the process that runs it.

Items are put into a lane, given to its workers, and what comes of them leaves in order, or as it comes, for the next
lane as soon as that has room. Objects are not unpacked on the way: what a worker has sent goes to the next one as it
is, large ones without a copy.

Room is what bounds memory: a lane takes an item only while it holds few, wherever they are: waiting, with a worker,
waiting for an earlier one, or for room in the next lane. Whoever makes room pulls from the lane before. All lanes of a
run share one lock.

A generator's worker waits when it is too far ahead. In an ordered lane, where an item may wait again (its worker died,
it is tried again), all workers might wait so, for the turn of an item that none of them has. Then the last one is
killed, and its item is done anew: see :meth:`Lane.unblock`.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Protocol, Union

from ..late import log
from . import parcel
from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .forms import DONE, ENDED, IN_PARTS, OUTCOME, PART, STREAM, UNSENDABLE
from .functions import Function
from .stage import RAISE, SKIP, AnyStage, StageError, StageStats
from .tasks import Payload, Source, Task, as_failure, without_frames
from .worker import PARTS_AHEAD

# Items that a lane holds: at least and at most so many for each worker.
_LEAST = 8
_MOST = 768
# Bytes that they have together, unless they are so few that workers would be idle.
_MOST_BYTES = 256 << 20


# After these nothing more can be done.
_FATAL = (InitializerFailed, Terminated)


class Hands(Protocol):
    """Who does the work of a lane: a crew, or somebody else's executor."""

    def add(self, task: Task | Source) -> None:
        """Has a task done."""

    def add_again(self, task: Task) -> None:
        """Has one done once more, before those that came after it."""

    def hurry(self) -> None:
        """No more tasks come soon."""

    def read(self, slot: int, parts: int = 1) -> None:
        """Parts of an outcome have gone on."""

    def wanted(self, function: Function) -> int:
        """Tasks that are given out together."""
        ...

    def totals(self) -> tuple[int, float]:
        """Tasks that were done, and the seconds that they took."""
        ...

    def running(self, slot: int) -> Task | None:
        """What a worker does now, as far as that can be known."""

    def kill(self, slot: int, task: Task) -> bool:
        """Kills a worker, if this is what it does: that fails (``WorkerDied``), and another takes its place."""
        ...

    def terminate(self) -> None:
        """Ends all work."""

    def join(self, timeout: float | None = None) -> bool:
        """Waits for that."""
        ...


class End:
    """Stands for the error that ends a run, in the place where it happened."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Ahead:
    """Values that a worker's generators have given before their items' turn."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Part:
    """One of the values of a generator: its worker is told when it has gone on."""

    __slots__ = ("ahead", "payload", "slot")

    def __init__(self, payload: Payload, slot: int, ahead: _Ahead) -> None:
        self.payload = payload
        self.slot = slot
        self.ahead = ahead


Token = Union[bytes, "list[memoryview]", memoryview, StageError, End]
"""What goes from lane to lane: an object's parcel, or what has become of it."""


class _Item(Task):
    """An item with the workers of a lane."""

    __slots__ = ("is_put_back", "lane", "number", "parts", "size", "skipped", "slot")

    def __init__(self, lane: Lane, number: int, payload: Payload) -> None:
        super().__init__(lane.function, STREAM, payload)
        self.lane = lane
        self.number = number
        self.size = parcel.size_of(payload)
        self.parts = 0
        self.skipped = 0
        self.slot = -1
        """Of the worker that has given its values."""
        self.is_put_back = False
        """Its worker is killed so that an earlier item can be done."""

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
        stage: AnyStage,
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
        # Bytes of an item's result, lately; None: not known.
        self._typical: float | None = None
        self._began = 0.0
        self._is_moving = False
        # What ends the run, if it came from before: first comes what came before it.
        self._last: End | None = None
        # Of an ordered stage: what came before its turn, and which items are done.
        self._turn = 0
        self._early: defaultdict[int, list[Token | Part]] = defaultdict(list)
        self._ended: set[int] = set()
        self._waiting = 0
        self._ahead: defaultdict[int, _Ahead] = defaultdict(_Ahead)

    # --- in ---

    @property
    def has_room(self) -> bool:
        """Whether it takes another item now. With the lock, as all here."""
        if self._last is not None:
            return False
        held = self._inside + len(self.ready) + self._waiting
        workers = self.stage.workers
        if held < workers + 1:
            return True
        if self._typical is None:
            return held < workers * _LEAST
        most = workers * max(_LEAST, min(_MOST, 3 * self.hands.wanted(self.function)))
        return held < most and self._bytes + self._inside * self._typical < _MOST_BYTES

    @property
    def is_empty(self) -> bool:
        """Nothing is in it."""
        return not self._inside and not self.ready

    def put(self, token: Token) -> None:
        """Takes what came from the lane before, or from a source."""
        number = self._enter()
        if isinstance(token, End):
            self._last = self._last or token
            self._leave(number)
            return
        if isinstance(token, StageError):
            self._give(number, token)
            self._leave(number)
            return
        self._began = self._began or time.monotonic()
        item = _Item(self, number, token)
        self._bytes += item.size
        try:
            self.hands.add(item)
        except Exception as error:
            self._give(number, End(error))
            self._end(item)

    def put_refused(self, error: Exception) -> StageError | None:
        """Instead of an item that cannot be given to workers; its error, if it is skipped."""
        number = self._enter()
        self.done += 1
        self.failed += 1
        skipped = self._settle(number, error, None)
        self._leave(number)
        return skipped

    def _enter(self) -> int:
        number = self.received
        self.received += 1
        self._inside += 1
        return number

    # --- what workers say ---

    def heard(self, item: _Item, what: int, flags: int, content: parcel.Content) -> None:
        """It is done, or one of its values is there."""
        payload = _payload_of(flags, content) if what != ENDED else b""
        with self._lock:
            if what == PART:
                self._heard_part(item, payload, OUTCOME.unpack_from(content)[5])
                return
            size = 0
            if what == DONE:
                self._give(item.number, payload)
                size = parcel.size_of(payload)
            self._typical = size if self._typical is None else 0.8 * self._typical + 0.2 * size
            self.done += 1
            self._end(item)

    def _heard_part(self, item: _Item, payload: Payload, slot: int) -> None:
        item.slot = slot
        item.parts += 1
        if item.parts <= item.skipped:  # it had come before the item was tried again
            self.hands.read(slot)
            return
        self._give(item.number, Part(payload, slot, self._ahead[slot]))
        self.move()

    def heard_failure(self, item: _Item, error: BaseException) -> None:
        """It has failed, this time."""
        with self._lock:
            if isinstance(error, WorkerDied | TaskTimeout):
                self._ahead.pop(item.slot, None)  # another worker has its place
            if self._tries_again(item, error):
                return
            self.done += 1
            self.failed += 1
            skipped = self._settle(item.number, error, self._kept_payload(item))
            self._end(item)
        log_skipped(skipped)

    def _tries_again(self, item: _Item, error: BaseException) -> bool:
        if isinstance(error, _FATAL):
            return False
        if item.is_put_back:
            self._put_back(item)
        elif item.tries < self.stage.retries:
            item.tries += 1
            item.again()
        else:
            return False
        try:
            self.hands.add_again(item)
        except Exception:
            return False
        return True

    def _kept_payload(self, item: _Item) -> Payload | None:
        # Its worker may have written to what was not kept.
        is_changed = isinstance(item.payload, memoryview) and self.stage.retries == 0
        return None if is_changed else item.payload

    def _settle(self, number: int, error: BaseException, payload: Payload | None) -> StageError | None:
        """What is made of an item that has failed; its error, if it is skipped."""
        if self.stage.on_error == RAISE or isinstance(error, _FATAL):
            if hasattr(error, "add_note"):
                error.add_note(f"in stage {self.stage.label}")
            self._give(number, End(error))
            return None
        failure = StageError(self.stage.label, error, payload)
        if self.stage.on_error == SKIP:
            self._report(failure)
            return failure
        self._give(number, failure)
        return None

    # --- all wait for an item that nobody does ---

    @property
    def may_be_stuck(self) -> bool:
        """All workers wait for items whose turn comes before theirs."""
        return sum(ahead.count >= PARTS_AHEAD for ahead in self._ahead.values()) >= self.stage.workers

    def unblock(self) -> None:
        """If so, and if none of them has the item whose turn it is, the one with the last item is to begin anew."""
        waiting = [slot for slot, ahead in self._ahead.items() if ahead.count >= PARTS_AHEAD]
        found = [(task, slot) for slot in waiting if isinstance(task := self.hands.running(slot), _Item)]
        if len(found) < self.stage.workers or any(task.number == self._turn or task.is_put_back for task, _ in found):
            return
        task, slot = max(found, key=lambda pair: pair[0].number)
        if self.hands.kill(slot, task):
            task.slot = slot
            task.is_put_back = True

    def _put_back(self, item: _Item) -> None:
        """As if it had never begun: none of its values has left."""
        item.is_put_back = False
        item.parts = item.skipped = 0
        for token in self._early.pop(item.number, ()):
            self._bytes -= _size_of(token)
            self._waiting -= 1

    # --- out ---

    def _give(self, number: int, token: Token | Part) -> None:
        self._bytes += _size_of(token)
        if not self.stage.ordered or number == self._turn:
            self.ready.append(token)
            return
        self._early[number].append(token)
        self._waiting += 1
        if isinstance(token, Part):
            token.ahead.count += 1
            if token.ahead.count >= PARTS_AHEAD:  # who waits for results shall look whether all workers wait
                self._changed()

    def _end(self, item: _Item) -> None:
        """Nothing more comes of this item."""
        self._bytes -= item.size
        self._leave(item.number)

    def _leave(self, number: int) -> None:
        self._inside -= 1
        if self.stage.ordered:
            self._ended.add(number)
            while self._turn in self._ended:
                self._ended.discard(self._turn)
                self._turn += 1
                self._release(self._early.pop(self._turn, []))
        self._end_run_in_turn()
        self.move()
        if self.is_empty:  # and nothing may come of it any more: perhaps that was the end
            self._changed()

    def _release(self, tokens: list[Token | Part]) -> None:
        self.ready.extend(tokens)
        self._waiting -= len(tokens)
        for token in tokens:
            if isinstance(token, Part):
                token.ahead.count -= 1

    def _end_run_in_turn(self) -> None:
        """What ends the run leaves when all that had come before it has left; after it nothing comes."""
        if self._last is not None and not self._inside:
            self.ready.append(self._last)

    def move(self) -> None:
        """Passes on what the next lane has room for; then this one may have room."""
        after = self.after
        if after is None:
            self._changed()
        elif self._is_moving:  # further up in this thread: it goes on with that
            return
        else:
            self._is_moving = True
            try:
                while self.ready and after.has_room:
                    after.put(self.take())
            finally:
                self._is_moving = False
        self._pull()

    def take(self) -> Token:
        """What leaves next."""
        token = self.ready.popleft()
        self._bytes -= _size_of(token)
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

    def clear(self) -> None:
        """The run is over: nobody wants what is left. Nor is the garbage collector to be waited for: some of it lies in
        shared memory."""
        self.before = self.after = None
        self.function = Function(b"", self.stage.label)
        self.ready.clear()
        self._early.clear()
        self._ended.clear()
        self._waiting = 0

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
            ready=len(self.ready) + self._waiting,
            rate=self.done / seconds if seconds else 0.0,
            busy=min(1.0, busy / (seconds * self.stage.workers)) if seconds else 0.0,
        )


def log_skipped(failure: StageError | None) -> None:
    """Without the lock: what logs do is not known here."""
    if failure is not None:
        log.warning("%s; the item is left out", failure)


def _size_of(token: Token | Part) -> int:
    if isinstance(token, (StageError, End)):
        return 0
    return parcel.size_of(token.payload if isinstance(token, Part) else token)


def _payload_of(flags: int, content: parcel.Content) -> Payload:
    """What a worker has sent, for the next one."""
    if not flags & IN_PARTS:
        return bytes(content[OUTCOME.size :])
    return memoryview(bytearray(content)) if isinstance(content, bytes) else content


def _error_in(what: int, flags: int, content: parcel.Content) -> BaseException:
    try:
        value = parcel.unpack(content, OUTCOME.size, bool(flags & IN_PARTS))
    except BaseException as error:
        return without_frames(error)
    raised = value[0] if what == UNSENDABLE else value
    if not isinstance(raised, BaseException):
        return TypeError(f"{raised!r} was raised")
    return as_failure(without_frames(raised))
