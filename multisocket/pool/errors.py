"""What can go wrong with tasks and workers."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from ..errors import Error, Timeout


class WorkerDied(BrokenExecutor, Error):
    """A worker process ended in the middle of a task: only that task fails, the pool goes on.

    :ivar exitcode: of the process; negative: the signal that killed it.
    """

    exitcode: int | None = None


class InitializerFailed(WorkerDied):
    """Workers cannot start, since their initializer raises, or kills them again and again: the pool has ended."""


class TaskTimeout(Timeout):
    """A task took longer than ``task_timeout``, and its worker was killed for that."""


class Terminated(WorkerDied):
    """The pool was terminated before the task was done."""
