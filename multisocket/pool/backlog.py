"""What waits to be given to workers, and how it is put together to batches."""

from __future__ import annotations

from collections import deque

from .forms import CALL, ONE, STREAM
from .tasks import Source, Task

MOST_BYTES = 65536
"""Small tasks are copied together; this many bytes of them at the most."""

_BATCHED = (ONE, CALL, STREAM)


class Backlog:
    """Tasks, and sources of tasks, in the order in which they are to be done. Its owner's lock guards it."""

    def __init__(self) -> None:
        self._waiting: deque[Task | Source] = deque()
        self.failed: list[tuple[Source, Exception]] = []
        """Sources that cannot go on, and why: for its owner to tell them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, task: Task | Source) -> None:
        """One that is done after all others."""
        self._waiting.append(task)

    def extend(self, tasks: list[Task]) -> None:
        """The same for several."""
        self._waiting.extend(tasks)

    def put_in_front(self, tasks: list[Task]) -> None:
        """Those that were taken out just now, or that go first."""
        self._waiting.extendleft(reversed(tasks))

    def put_back(self, tasks: list[Task]) -> None:
        """Those that were taken out before: in front, or where their numbers belong."""
        self.put_in_front(tasks)
        if any(task.number for task in tasks):
            self._waiting = deque(sorted(self._waiting, key=lambda task: task.number))

    def take_fresh(self) -> list[Task]:
        """Takes out the tasks that were not started yet."""
        fresh = [task for task in self._waiting if isinstance(task, Task) and not task.is_started]
        self._waiting = deque(task for task in self._waiting if isinstance(task, Source) or task.is_started)
        return fresh

    def take_all(self) -> list[Task | Source]:
        """Takes out everything."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def next_batch(self, wanted: int | None, workers: int) -> list[Task]:
        """Takes out tasks that go together: short ones of one function.

        :param wanted: how many; None: as many as the function's run time makes good.
        :param workers: among whom what is here is to be shared.
        :returns: nothing, when nothing is left.
        """
        first = self._next()
        if first is None:
            return []
        batch = [first]
        if first.kind not in _BATCHED or not isinstance(first.payload, bytes):
            return batch
        waiting = self._waiting
        room = min(wanted or first.function.batch, -(-len(waiting) // workers)) - 1
        size = len(first.payload)
        try:
            while room > 0 and waiting and size < MOST_BYTES:
                head = waiting[0]
                if isinstance(head, Source) or head.function is not first.function or head.kind != first.kind:
                    break
                if not isinstance(head.payload, bytes):
                    break
                waiting.popleft()
                if head.start():
                    batch.append(head)
                    size += len(head.payload)
                    room -= 1
        except BaseException:  # Ctrl-C, for one
            self.put_in_front(batch)
            raise
        return batch

    def _next(self) -> Task | None:
        waiting = self._waiting
        while waiting:
            head = waiting[0]
            if not isinstance(head, Source):
                waiting.popleft()
                if head.start():
                    return head
                continue
            task = self._next_of(head)
            if task is not None:
                return task
            waiting.popleft()
        return None

    def _next_of(self, source: Source) -> Task | None:
        try:
            return source.next_task()
        except Exception as error:  # it cannot be pickled
            self.failed.append((source, error))
            return None
