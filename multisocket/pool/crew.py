"""The crew: worker processes that consume from one Socket, and the boss that gives them tasks and hears of outcomes.

Two Sockets, connected within this process. All workers share the first: batches of tasks lie in its inbox, and whoever
is free takes the next one, so there is no dispatcher to wait for. Their outcomes lie in the inbox of the second, the
boss's, where one thread of this process reads them.

What survives what: workers claim batches in shared memory in the same step as they take them (shm/claims.h), and send
each outcome before they begin the next task. So when one is dead, and what it has sent was read, its claim tells which
single task it was running. That one fails or is done again; those that it had not begun go back to the front.

Batches are as large as their tasks are short: see :data:`BATCH_SECONDS`. Should one hold up others nevertheless, what
its worker has not begun is recalled as soon as somebody is idle.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from .. import names
from ..background import background
from ..errors import Closed, NotSupported, OutOfSharedMemory, Timeout
from ..late import log
from ..shm import Arena, Board, copy
from ..socket import Socket
from . import parcel
from .backlog import Backlog
from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .forms import AWAKE, BATCH, IN_PARTS, KEPT, LENGTH, NOT_READY, OUTCOME, PART, UNKNOWN
from .functions import Function, Functions
from .hand import Hand, how_ended, start
from .main_module import main_for_workers
from .processes import AfterMain, imports_main_itself, is_importing_main
from .tasks import Source, Task, by_value, described
from .worker import work

BATCH_SECONDS = 0.001
"""How long a batch of tasks shall take: then giving out batches costs next to nothing, and none holds up others."""

LOADING_SECONDS = 60.0
"""How long a task's function and arguments may take to load (imports, above all) where there is a task_timeout, which
does not count that. If task_timeout is longer, as long."""

_MOST_TASKS = 256
_MOST_IN_A_BATCH = 0xFFFF
_GATHER = 256
# A running task shorter than this is not worth a recall of what comes after it.
_RECALL_AFTER = 0.002
_JOIN_SECONDS = 30.0
_TERM_SECONDS = 1.0
# Shared memory that nobody who works needs may come back a moment later: so long a task waits for it.
_MEMORY_SECONDS = 2.0
# When a worker cannot be started, because memory or processes are short, it is tried again; so often while none runs.
_START_AGAIN = 0.25
_MOST_STARTS = 40
# Where worker after worker ends before it is ready, while others are well, the next one is started only then.
_START_LATE = 5.0
# Workers that end before they are ready, one after the other, until it is reported: this many, and two more for each.
_STILLBORN = 6

UNGUARDED = (
    "a worker that imports the main module would make workers of its own: put what makes them under"
    ' if __name__ == "__main__":'
)

# Even SystemExit: others' callbacks must not end the pool.
_CALLBACK = "a callback of a pool's task raised an error"


class Batch:
    """Tasks that were given out together."""

    __slots__ = ("function", "left", "tasks")

    def __init__(self, tasks: list[Task]) -> None:
        self.function = tasks[0].function
        self.tasks: list[Task | None] = list(tasks)
        self.left = len(tasks)

    def drop(self, index: int) -> Task | None:
        """Takes one out; None: it is done already."""
        task = self.tasks[index]
        if task is not None:
            self.tasks[index] = None
            self.left -= 1
        return task


class Crew:
    """Workers and their tasks.

    :param processes: how many workers.
    :param context: how they are started.
    :param initializer: called with ``initargs`` in each worker first.
    :param max_tasks: after so many a worker is replaced; None: never.
    :param retries: how often a task is done again whose worker died.
    :param task_timeout: seconds of its own time after which the worker of a task is killed; None: never.
    :param finishes_at_exit: at the interpreter's exit, what there is to do is done; otherwise workers end at once.
    :param batch: tasks that are given out together; None: as many as are short.
    :param keeps_payloads: who gives tasks wants their payloads unchanged afterwards.
    :param needs_main: workers have the main module, where that can be.
    :raises RuntimeError: a worker of another one is just importing the main module.
    """

    def __init__(
        self,
        processes: int,
        *,
        context: BaseContext,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks: int | None = None,
        retries: int = 0,
        task_timeout: float | None = None,
        finishes_at_exit: bool = False,
        batch: int | None = None,
        keeps_payloads: bool = False,
        needs_main: bool = True,
    ) -> None:
        if is_importing_main():
            raise RuntimeError(UNGUARDED)
        self.processes = processes
        self._main = main_for_workers() if needs_main and imports_main_itself(context) else {}
        self._has_main = bool(self._main) or not imports_main_itself(context)
        self.functions = Functions(has_main=self._has_main)
        self.retries = retries
        self.finishes_at_exit = finishes_at_exit
        self._batch = None if batch is None else min(batch, _MOST_IN_A_BATCH)
        self._keeps_payloads = keeps_payloads or retries > 0
        self._context: Any = context
        self._initializer = initializer
        self._initargs = initargs
        self._max_tasks = max_tasks
        self._task_timeout = task_timeout
        self._pid = os.getpid()
        self._work = Socket(send_stop_timeout=0.0)
        self._boss = Socket(send_stop_timeout=0.0)
        address = f"inproc://crew-{os.urandom(8).hex()}"
        self._work.listen(address)
        self._boss.dial(address, reconnect=False)
        self._board = names.new_memory(lambda name: Board.create(name, processes))

        # Guards all that follows. Nobody calls a task's methods with it, but for start.
        self._lock = threading.RLock()
        self._backlog = Backlog()
        self._batches: dict[int, Batch] = {}
        self._number = 0
        self._hands: dict[int, Hand] = {}
        self._failed: deque[tuple[Task | Source, BaseException]] = deque()
        self._dead: deque[int] = deque()
        self._doubtful: list[int] = []
        self._stillborn = 0
        self._stillborn_in: dict[int, int] = {}
        self._is_starved = False
        self._starved_since: float | None = None
        self._expected = 0
        self._sleeps_long = False
        self._missing: set[int] = set()
        self._failed_starts = 0
        self._start_again = 0.0
        self._done = 0
        self._busy = 0  # microseconds
        self._most_in_place = _most_in_place()
        self._arena: Arena | None = None
        self._is_closing = False
        self._is_terminating = False
        self._is_killing = False
        self._broken: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        _crews.add(self)
        _end_all_at_exit()

    # --- giving tasks ---

    def add(self, task: Task | Source, *, is_expected: bool = False) -> None:
        """Has a task done, or all those of a source.

        :param is_expected: it is one of those that :meth:`expect_more` has told of.
        :raises Closed: no more are taken.
        :raises InitializerFailed: workers cannot start.
        :raises NotSupported: another process has made this.
        """
        self._check_mine()
        with self._lock:
            if self._is_ending:
                self._check_open(is_expected)
            if len(self._hands) < self.processes:
                self._staff(1)
            self._backlog.append(task)
            # While outcomes come in they call for more, and then for all that has gathered: so short tasks go out in
            # large batches. Not if somebody may be idle: those who are busy may have no outcome for long.
            if len(self._batches) < self.processes or self._is_due(task):
                self._pump()
        if self._failed:
            self._tell()

    def add_again(self, task: Task) -> None:
        """Has a task done once more, before those that came after it. Errors: as :meth:`add`."""
        with self._lock:
            self._check_open()
            self._staff(1)
            self._backlog.put_back([task])
            self._pump()
        self._tell()

    def expect_more(self) -> None:
        """Tasks will be added even after ``close``, until :meth:`expect_no_more`: once for each call."""
        self._check_mine()
        with self._lock:
            self._check_open()
            self._expected += 1

    def expect_no_more(self) -> None:
        """See :meth:`expect_more`."""
        with self._lock:
            self._expected -= 1
            is_last = self._is_closing and not self._expected
        if is_last:
            self._wake()

    def _check_mine(self) -> None:
        if self._pid != os.getpid():  # its lock may be held for ever here
            raise NotSupported("a pool is used by the process that made it: make another one here")

    @property
    def _is_ending(self) -> bool:
        return self._is_closing or self._is_terminating or self._broken is not None or self._over.is_set()

    def _check_open(self, is_expected: bool = False) -> None:
        if self._broken is not None:
            raise self._broken.with_traceback(None)  # else each raise would add to it
        if (self._is_closing and not is_expected) or self._is_terminating or self._over.is_set():
            raise Closed("this pool is closed: make a new one")

    def _is_due(self, task: Task | Source) -> bool:
        if isinstance(task, Source):
            return True
        return len(self._backlog) >= self.wanted(task.function) and self._work._depth < self.processes

    def wanted(self, function: Function) -> int:
        """Tasks that make a batch."""
        return self._batch or function.batch

    def hurry(self) -> None:
        """Nothing that would make the backlog larger comes soon."""
        with self._lock:
            self._pump()
        self._tell()

    def _pump(self) -> None:
        """Gives out as much as keeps all workers busy. With the lock."""
        self._is_starved = False
        if self._is_terminating or self._broken is not None:
            return
        while self._backlog and self._work._depth < self.processes:
            tasks = self._backlog.next_batch(self._batch, self.processes)
            if self._backlog.failed:
                self._failed.extend(self._backlog.failed)
                self._backlog.failed.clear()
            if not tasks or not self._give_out(tasks):
                return

    def _give_out(self, tasks: list[Task]) -> bool:
        """False: not now, they are in the backlog again."""
        number = self._next_number()
        self._batches[number] = Batch(tasks)
        try:
            self._send(number, tasks)
            self._starved_since = None
            if len(tasks) > 1 or self._task_timeout is not None:
                self._rouse()
            return True
        except (Timeout, OutOfSharedMemory) as error:
            del self._batches[number]
            if self._is_worth_waiting():
                self._backlog.put_in_front(tasks)
                self._is_starved = True
                self._rouse()
                return False
            self._failed.extend((task, error) for task in tasks)
        except Exception as error:  # too long
            del self._batches[number]
            self._failed.extend((task, error) for task in tasks)
        except BaseException:  # Ctrl-C: before it was sent, or after?
            self._doubtful.append(number)
            self._wake()
            raise
        return True

    def _decide_doubtful(self) -> None:
        """Finds out whether batches were sent, where that was interrupted: what nobody has claimed, nor sent an outcome
        of, was not."""
        with self._lock:
            if self._work._depth:
                return  # it may lie there
            self._board.settle(self._work)
            claimed = {self._board.view(slot)[0] for slot in self._hands}
            unclaimed = [number for number in self._doubtful if number not in claimed]
            self._doubtful.clear()
        self._hear_all()  # all that was sent of them, if they were claimed and done before
        with self._lock:
            for number in unclaimed:
                batch = self._batches.get(number)
                if batch is not None and batch.left == len(batch.tasks):
                    del self._batches[number]
                    self._backlog.put_back([task for task in batch.tasks if task is not None])

    def _next_number(self) -> int:
        while True:
            self._number = self._number % 0xFFFFFFFF + 1
            if self._number not in self._batches:
                return self._number

    def _is_worth_waiting(self) -> bool:
        """Whether memory may come back: as long as somebody is busy with what takes it, and a moment longer."""
        now = time.monotonic()
        if self._batches or self._starved_since is None:
            self._starved_since = now
        if now - self._starved_since < _MEMORY_SECONDS:
            return True
        self._starved_since = None
        return False

    def _send(self, number: int, tasks: list[Task]) -> None:
        first = tasks[0]
        payload = first.payload
        blob = first.function.blob
        in_parts = not isinstance(payload, bytes)
        flags = IN_PARTS if in_parts else 0
        if isinstance(payload, memoryview) and self._keeps_payloads:
            flags |= KEPT
        head = BATCH.pack(number, len(tasks), first.kind, flags, len(blob), 0) + blob
        if isinstance(payload, memoryview):
            payload[: len(head)] = head
            self._board.pass_on(self._boss, payload, 0)
        elif in_parts:
            parcel.send(self._boss, head, payload, 0)
        else:
            pieces = [head]
            for task in tasks:
                assert isinstance(task.payload, bytes)
                pieces += (LENGTH.pack(len(task.payload)), task.payload)
            self._boss.send(b"".join(pieces), 0)

    def _tell(self) -> None:
        """Tells of tasks that fail. Without the lock."""
        while self._failed:
            with contextlib.suppress(IndexError):  # another thread was faster
                task, error = self._failed.popleft()
                try:
                    task.fail(error)
                except BaseException:
                    log.exception(_CALLBACK)

    # --- workers ---

    def start(self) -> None:
        """Starts all workers, and the thread that listens to them."""
        with self._lock:
            self._check_open()
            for slot in range(self.processes):
                if slot not in self._hands:
                    self._start_worker(slot)
            self._start_thread()

    def _staff(self, added: int) -> None:
        """Starts workers as far as there is work for them, with so many tasks more. With the lock."""
        if len(self._hands) == self.processes and self._thread is not None:
            return
        wanted = self.processes
        # With threads about, forking is the less safe the later it is done.
        if self._context.get_start_method() != "fork":
            wanted = min(wanted, added + len(self._backlog) + self._unfinished())
        for slot in range(self.processes):
            if len(self._hands) >= wanted:
                break
            if slot not in self._hands and self._hands:
                self._try_start(slot)
            elif slot not in self._hands:
                self._start_worker(slot)
        self._start_thread()

    def _unfinished(self) -> int:
        return sum(batch.left for batch in self._batches.values())

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="multisocket-crew", daemon=True)
            self._thread.start()

    def _start_worker(self, slot: int) -> None:
        self._board.clear(slot)
        guard = names.guard_path()
        initializer = AfterMain((self._initializer, self._initargs), has_main=self._has_main)
        args = (self._work, self._board.name, slot, guard, self._main, initializer, self._max_tasks)
        name = f"multisocket-worker-{slot}"
        hand = self._hands[slot] = start(self._context, work, args, name, self._main)
        watcher = background()
        watcher.call(lambda: watcher.watch(hand.sentinel, lambda: self._ended(slot, hand)))

    def _ended(self, slot: int, hand: Hand) -> None:
        """In the background thread."""
        background().unwatch(hand.sentinel)
        self._dead.append(slot)
        self._wake()

    def _rouse(self) -> None:
        """Has the crew's thread look again how long it may sleep."""
        if self._sleeps_long:
            self._sleeps_long = False
            self._wake()

    def _wake(self) -> None:
        """Has the crew's thread look around."""
        try:
            self._work.send(OUTCOME.pack(0, 0, AWAKE, 0, 0, 0), 0)
        except OutOfSharedMemory:
            background().call_later(0.05, self._wake)
        except (Closed, Timeout):  # one that has much to read looks around anyway
            return

    # --- the crew's thread ---

    def _run(self) -> None:
        try:
            while not self._is_terminating:
                self._listen()
                if self._dead:
                    self._bury_dead()
                if self._doubtful:
                    self._decide_doubtful()
                if self._missing:
                    self._fill_up()
                if self._task_timeout is not None:
                    self._kill_overdue(self._task_timeout)
                with self._lock:
                    self._rebalance()
                    self._pump()
                    is_done = not self._is_needed()
                self._tell()
                if is_done or self._broken is not None:
                    break
        except Exception as error:
            log.exception("a pool ends: its thread failed")
            self._break(WorkerDied(f"the pool has ended by an error of its own: {error!r}"))
        finally:
            self._finish()

    def _listen(self) -> None:
        try:
            contents = self._boss._recv_in_place(_GATHER, self._patience())
        except Timeout:
            return
        for content in contents:
            self._hear(content)

    def _patience(self) -> float | None:
        """Seconds after which there is something to do although nothing is heard."""
        # First: what others add from now on, they tell of.
        self._sleeps_long = True
        patience = self._next_look()
        if patience is not None:
            self._sleeps_long = False
        return patience

    def _next_look(self) -> float | None:
        if self._is_starved or self._doubtful:
            return 0.001
        patience = _START_AGAIN if self._missing else None
        if self._task_timeout is not None and self._batches:
            patience = min(max(self._task_timeout / 8, 0.005), patience or 0.5)
        if not self._backlog and any(batch.left > 1 for batch in list(self._batches.values())):
            patience = min(patience or _RECALL_AFTER, _RECALL_AFTER)
        return patience

    def _hear(self, content: parcel.Content) -> None:
        number, index, what, flags, took, _ = OUTCOME.unpack_from(content)
        batch = self._batches.get(number)
        if batch is None:
            if what == NOT_READY:
                self._break(_initializer_raised(_opened_error(flags, content)))
            return
        if what == PART:
            part_of = batch.tasks[index]
            if part_of is not None:
                self._pass_outcome(part_of, what, flags, content)
            return
        task = batch.drop(index)
        if task is None:
            return
        if not batch.left:
            self._forget(number)
        self._done += 1
        self._busy += took
        if not batch.left & 7 and what != UNKNOWN:  # a part of them tells enough
            _learn(task.function, took)
        if what == UNKNOWN and not task.function.is_by_value:
            self._do_by_value(task, flags, content)
        else:
            self._pass_outcome(task, what, flags, content)

    def _pass_outcome(self, task: Task, what: int, flags: int, content: parcel.Content) -> None:
        if task.is_kept and isinstance(content, memoryview):
            content = self._moved(content)
        try:
            task.outcome(what, flags, content)
        except BaseException:
            log.exception(_CALLBACK)

    def _moved(self, content: memoryview) -> memoryview:
        """A content that somebody may keep for long: out of shared memory, when there is much in it already. So workers
        can go on sending."""
        if self._arena is None:
            self._arena = self._work._own_arena()
        if self._arena is None or self._arena.used <= self._most_in_place:
            return content
        private = memoryview(bytearray(content.nbytes))
        copy(private, content)
        return private

    def _forget(self, number: int) -> None:
        with self._lock:
            self._batches.pop(number, None)

    def _do_by_value(self, task: Task, flags: int, content: parcel.Content) -> None:
        """The workers know something not by its name: they were started before it was there."""
        try:
            by_value(task, self.functions)
        except Exception:
            self._pass_outcome(task, UNKNOWN, flags, content)
            return
        with self._lock:
            self._backlog.put_in_front([task])

    def read(self, slot: int, parts: int = 1) -> None:
        """Parts of an outcome have been passed on: the worker may send as many more."""
        self._board.allow(slot, parts)

    def running(self, slot: int) -> Task | None:
        """What a worker does now; None: nothing, or it is already done."""
        with self._lock:
            number, following, _, began, _ = self._board.view(slot)
            batch = self._batches.get(number)
            return batch.tasks[following - 1] if batch is not None and following and began else None

    def kill(self, slot: int, task: Task) -> bool:
        """Kills a worker, if this is what it does: that fails (``WorkerDied``), and another takes its place."""
        with self._lock:
            hand = self._hands.get(slot)
            number, following, *_ = self._board.view(slot)
            if hand is None or self.running(slot) is not task:
                return False
            if not self._board.condemn(slot, number, following - 1):
                return False
            hand.process.kill()
            return True

    # --- those who hold up others ---

    def _rebalance(self) -> None:
        """Recalls what has not begun while somebody is idle. With the lock."""
        if self._backlog or not self._batches or self._work._depth:
            return
        views = {slot: self._board.view(slot) for slot in self._hands}
        if all(number for number, *_ in views.values()):
            return
        now = time.monotonic()
        for slot, (number, following, end, began, loaded) in views.items():
            if end > following and began and now - began / 1e9 >= _RECALL_AFTER:
                self._recall(slot, number, now - loaded / 1e9 if loaded else None)

    def _recall(self, slot: int, number: int, seconds: float | None) -> None:
        """seconds: that its running task has taken by now; None: it has not really begun."""
        batch = self._batches.get(number)
        found = self._board.recall(slot, number) if batch is not None else None
        if batch is None or found is None:
            return
        if seconds is not None:
            _learn_at_least(batch.function, seconds)
        recalled = [task for index in range(*found) if (task := batch.drop(index)) is not None]
        self._backlog.extend(recalled)
        if not batch.left:
            self._forget(number)

    def _kill_overdue(self, limit: float) -> None:
        for slot, hand in list(self._hands.items()):
            number, following, _, began, loaded = self._board.view(slot)
            if not began or hand.overdue is not None:
                continue
            allowed = limit if loaded else max(limit, LOADING_SECONDS)
            if time.monotonic() - (loaded or began) / 1e9 < allowed:
                continue
            if self._board.condemn(slot, number, following - 1):
                hand.overdue = (
                    f"took longer than the {limit} s of task_timeout"
                    if loaded
                    else f"was not begun, as loading its function or arguments took longer than {allowed} s"
                )
                hand.process.kill()

    # --- the dead ---

    def _bury_dead(self) -> None:
        # All that they had sent is in the inbox by now: it comes first.
        dead = [self._dead.popleft() for _ in range(len(self._dead))]
        self._hear_all()
        for slot in dead:
            self._bury(slot)
        self._tell()

    def _hear_all(self) -> None:
        """What lies in the inbox by now."""
        for _ in range(self._boss._depth):
            try:
                (content,) = self._boss._recv_in_place(1, 0)
            except Timeout:
                break
            self._hear(content)

    def _bury(self, slot: int) -> None:
        # It keeps its slot until its claim was read: a new worker there would have that cleared.
        hand = self._hands[slot]
        hand.reap()
        with contextlib.suppress(Closed):
            self._board.settle(self._work)
        self._count_stillborn(slot, hand.process)
        with self._lock:
            lost, untouched = self._take_back(slot)
            del self._hands[slot]
            self._backlog.put_back(untouched)
        if lost is not None:
            self._lose(lost, hand)
        with self._lock:
            if slot not in self._hands and not self._is_hurried and self._is_needed():
                self._start_next(slot)

    def _start_next(self, slot: int) -> None:
        """In the place of one that has ended; after a pause, if none gets ready there. With the lock."""
        if self._stillborn_in.get(slot, 0) < _STILLBORN + 2:
            self._try_start(slot)
            return
        log.warning("workers end before they are ready, one after the other: the next one is started after a pause")
        self._missing.add(slot)
        self._start_again = time.monotonic() + _START_LATE

    def _try_start(self, slot: int) -> None:
        """With the lock."""
        try:
            self._start_worker(slot)
        except Exception as error:
            log.warning("cannot start a worker, it is tried again: %r", error)
            self._missing.add(slot)
            self._rouse()
            self._start_again = time.monotonic() + _START_AGAIN
            self._failed_starts += 1
            if not self._hands and self._failed_starts >= _MOST_STARTS:
                self._broken = WorkerDied(f"no worker can be started: {error!r}")
        else:
            self._missing.discard(slot)
            self._failed_starts = 0

    def _fill_up(self) -> None:
        """Starts those that could not be started."""
        with self._lock:
            for slot in list(self._missing):
                if slot in self._hands or not self._is_needed():
                    self._missing.discard(slot)
                elif time.monotonic() >= self._start_again:
                    self._try_start(slot)

    def _is_needed(self) -> bool:
        return not self._is_closing or bool(self._backlog or self._batches or self._expected)

    def _take_back(self, slot: int) -> tuple[Task | None, list[Task]]:
        """What the dead worker of a slot was doing, and what it had claimed but not begun. With the lock."""
        number, following, end, began, _ = self._board.view(slot)
        batch = self._batches.get(number)
        if batch is None:
            return None, []
        lost = batch.drop(following - 1) if following and began else None
        first = following if began else max(following - 1, 0)
        untouched = [task for index in range(first, end) if (task := batch.drop(index)) is not None]
        if not batch.left:
            self._forget(number)
        return lost, untouched

    def _lose(self, task: Task, hand: Hand) -> None:
        """A task's worker has died. Without the lock: what describes the task may be anybody's code."""
        how = how_ended(hand.process)
        if hand.overdue is not None:
            self._failed.append((task, TaskTimeout(f"{described(task)} {hand.overdue}: its worker was killed")))
            return
        if task.tries < self.retries:
            task.tries += 1
            log.warning("a worker %s; %s is done again (%d of %d)", how, described(task), task.tries, self.retries)
            task.again()
            with self._lock:
                self._backlog.put_in_front([task])
            return
        error = WorkerDied(f"the worker (process {hand.process.pid}) {how} while it ran {described(task)}")
        error.exitcode = hand.process.exitcode
        self._failed.append((task, error))

    def _count_stillborn(self, slot: int, process: BaseProcess) -> None:
        is_ready = self._board.is_ready(slot)
        self._stillborn_in[slot] = 0 if is_ready else self._stillborn_in.get(slot, 0) + 1
        if is_ready or any(map(self._board.is_ready, list(self._hands))):
            self._stillborn = 0
            return
        self._stillborn += 1
        if self._stillborn >= _STILLBORN + 2 * self.processes:
            hint = 'is it their initializer, or is the main program not under if __name__ == "__main__"?'
            self._break(InitializerFailed(
                f"{self._stillborn} workers in a row ended before they were ready; the last one {how_ended(process)}:"
                f" {hint}"
            ))  # fmt: skip

    def _break(self, error: BaseException) -> None:
        """All that is to be done fails, and nothing more is taken."""
        with self._lock:
            self._broken = error
            self._fail_all(error)
        self._tell()

    def _fail_all(self, error: BaseException) -> None:
        for batch in self._batches.values():
            self._failed.extend((task, error) for task in batch.tasks if task is not None)
        self._batches.clear()
        self._failed.extend((task, error) for task in self._backlog.take_all())

    # --- the end ---

    def drop_backlog(self) -> list[Task]:
        """Takes out the tasks that no worker has been given yet."""
        self._check_mine()
        with self._lock:
            return self._backlog.take_fresh()

    def close(self) -> None:
        """No more tasks: when all are done, workers end."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._is_closing or self._over.is_set():
                return
            self._is_closing = True
            is_running = self._thread is not None
        if is_running:
            self._wake()
        else:
            self._finish()

    def terminate(self, *, kill: bool = False) -> None:
        """Ends all workers, whatever they do. Tasks that are not done fail (``Terminated``).

        :param kill: without a chance for them to handle a signal; otherwise they have a second for that.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._over.is_set():
                return
            self._is_killing |= kill
            self._is_closing = self._is_terminating = True
            is_running = self._thread is not None
        if is_running:
            self._wake()
        else:
            self._finish()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until all workers have ended, after ``close`` or ``terminate``; whether they have.

        From within the crew's thread, in a callback, it returns at once: it would wait for itself.
        """
        if not self.is_mine:  # nothing of it is here
            return True
        if threading.current_thread() is self._thread:
            return False
        return self._over.wait(timeout)

    @property
    def is_closing(self) -> bool:
        """No more tasks are taken."""
        return self._is_closing or self._is_terminating or self._over.is_set()

    @property
    def is_mine(self) -> bool:
        """Whether it was made in this process."""
        return self._pid == os.getpid()

    @property
    def is_over(self) -> bool:
        """All workers have ended."""
        return self._over.is_set()

    @property
    def broken(self) -> BaseException | None:
        """Why no more tasks are taken, when workers cannot start."""
        return self._broken

    @property
    def workers(self) -> list[BaseProcess]:
        """The processes."""
        with self._lock:
            return [hand.process for _, hand in sorted(self._hands.items())]

    def _finish(self) -> None:
        try:
            self._end_workers()
            self._boss.close()
            names.remove_segment(self._board.name)
        finally:
            self._arena = None
            self.functions.close()
            with self._lock:
                self._fail_all(self._broken or Terminated("the pool was terminated before this task was done"))
                self._hands.clear()
            self._tell()
            _crews.discard(self)
            self._over.set()

    def _end_workers(self) -> None:
        hands = list(self._hands.values())
        began = time.monotonic()
        is_hurried = self._is_hurried
        if is_hurried:
            self._terminate_if_hurried(hands)
        else:
            self._work.close()
        for hand in hands:
            while not hand.has_ended(0.1):
                if self._is_hurried and not is_hurried:
                    is_hurried, began = True, time.monotonic()
                    self._terminate_if_hurried(hands)
                if self._is_killing or time.monotonic() - began >= (_TERM_SECONDS if is_hurried else _JOIN_SECONDS):
                    hand.process.kill()
            hand.reap()
        # When they are terminated, only now: what they held in shared memory then goes with it.
        for sock in (self._work, self._boss):
            _drop_unread(sock)
        self._work.close()
        watcher = background()
        for hand in hands:
            watcher.end_with(lambda hand=hand: watcher.unwatch(hand.sentinel))  # type: ignore[misc]

    @property
    def _is_hurried(self) -> bool:
        return self._is_terminating or self._broken is not None

    def _terminate_if_hurried(self, hands: list[Hand]) -> None:
        if self._is_hurried:
            for hand in hands:
                hand.process.kill() if self._is_killing else hand.process.terminate()

    # --- counters ---

    def stats(self) -> dict[str, float]:
        """``workers`` that run, tasks ``waiting`` for one, ``given`` to one but not done, ``done``, and the seconds
        that these took (``busy``)."""
        with self._lock:
            waiting, given = len(self._backlog), self._unfinished()
        done, busy = self.totals()
        return {"workers": len(self._hands), "waiting": waiting, "given": given, "done": done, "busy": busy}

    def totals(self) -> tuple[int, float]:
        """Tasks that were done, and the seconds that these took."""
        # Workers count nanoseconds, but not of the last task before they ended.
        return self._done, max(self._busy / 1e6, self._board.totals()[1])

    @property
    def memory_used(self) -> int:
        """Bytes of large results that lie in shared memory."""
        arena = self._work._own_arena()
        return 0 if arena is None else arena.used


def _drop_unread(sock: Socket) -> None:
    """What lies in an inbox keeps the memory of what it refers to, even when that is closed."""
    with contextlib.suppress(Timeout, Closed, OutOfSharedMemory):
        while True:
            sock._recv_in_place(_GATHER, 0)


def _most_in_place() -> int:
    """Bytes of results that may stay in shared memory: it is there for those on their way, first of all."""
    system = os.statvfs("/dev/shm")
    return min(system.f_blocks * system.f_frsize // 4, 1 << 30)


def _learn(function: Function, microseconds: int) -> None:
    """So long did a call take."""
    seconds = max(microseconds, 2) / 1e6
    known = function.seconds
    function.seconds = seconds if known is None else 0.8 * known + 0.2 * seconds
    function.batch = max(1, min(_MOST_TASKS, int(BATCH_SECONDS / function.seconds)))


def _learn_at_least(function: Function, seconds: float) -> None:
    """So long does one take by now."""
    if function.seconds is None or function.seconds < seconds:
        function.seconds = seconds
        function.batch = max(1, int(BATCH_SECONDS / seconds))


def _opened_error(flags: int, content: parcel.Content) -> BaseException:
    try:
        error = parcel.unpack(content, OUTCOME.size, bool(flags & IN_PARTS))
    except Exception as refusal:
        return refusal
    assert isinstance(error, BaseException)
    return error


def _initializer_raised(error: BaseException) -> InitializerFailed:
    if isinstance(error, InitializerFailed):
        return error
    failed = InitializerFailed(f"the initializer of a worker raised {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


# --- the interpreter's exit ---

_crews: weakref.WeakSet[Crew] = weakref.WeakSet()
_at_exit_pid = 0


def _end_all_at_exit() -> None:
    global _at_exit_pid
    if _at_exit_pid != os.getpid():
        _at_exit_pid = os.getpid()
        # Before Sockets are closed.
        names.at_exit(_end_all, priority=20)


def _end_all() -> None:
    import sys

    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for crew in list(_crews):
        if crew.finishes_at_exit and not is_interrupted:
            crew.close()
        else:
            crew.terminate()
    for crew in list(_crews):
        crew.join()


os.register_at_fork(after_in_child=_crews.clear)
