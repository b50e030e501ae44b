"""A Future that costs little: its condition, most of what one costs, is made only when somebody waits for it, watches
it or cancels it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, TypeVar

T = TypeVar("T")

# Guards all of them as long as they have no condition. Who needs one adds it with this lock; so either it is there when
# the result comes, or the result is there for whoever added it.
_lock = threading.Lock()


class LateFuture(Future[T]):
    """See ``concurrent.futures.Future``."""

    def __init__(self) -> None:
        # All that Future.__init__ does, but for the condition, and the lists that only who has it may look at.
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._made: threading.Condition | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._made is None:
            # Made without the lock: a collection of garbage may begin here, and run anything.
            made, waiters, callbacks = threading.Condition(), [], []  # type: ignore[var-annotated]
            with _lock:
                if self._made is None:
                    self._waiters: list[Any] = waiters
                    self._done_callbacks: list[Any] = callbacks
                    self._made = made
        assert self._made is not None
        return self._made

    def finish(self, result: T) -> None:
        """Like ``set_result``."""
        with _lock:
            # If it is done already, set_result says so: its text needs the condition, which needs the lock.
            if self._made is None and (self._state == PENDING or self._state == RUNNING):
                self._result = result
                self._state = FINISHED
                return
        self.set_result(result)

    def set_running_or_notify_cancel(self) -> bool:
        """See ``Future``."""
        with _lock:
            if self._made is None and self._state == PENDING:
                self._state = RUNNING
                return True
        return super().set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """See ``Future``."""
        if self._made is None and self._state == FINISHED:
            return self._result  # type: ignore[no-any-return]
        return super().result(timeout)

    def done(self) -> bool:
        """See ``Future``."""
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)


def _forget_parents() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents)
