"""What can go wrong with tasks and workers."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from ..errors import Error, Timeout


class WorkerDied(BrokenProcessPool, Error):
    """A worker process ended in the middle of a task: only that task fails, the pool goes on.

    It is what ``ProcessPoolExecutor`` raises then (a ``BrokenExecutor``), for code that was written for that.

    :ivar exitcode: of the process; negative: the signal that killed it.
    """

    exitcode: int | None = None


class InitializerFailed(WorkerDied):
    """Workers cannot start, since their initializer raises, or kills them again and again: the pool has ended."""


class TaskTimeout(Timeout):
    """A task took longer than ``task_timeout``, and its worker was killed for that."""


class Terminated(WorkerDied):
    """The pool was terminated before the task was done."""
