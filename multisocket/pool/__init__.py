"""Worker processes that all consume from one Socket, and survive: drop-ins for ``multiprocessing.Pool`` and
``concurrent.futures.ProcessPoolExecutor``, and pipelines of stages."""

from __future__ import annotations

from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .executor import Executor
from .pool import Pool

__all__ = ["Executor", "InitializerFailed", "Pool", "TaskTimeout", "Terminated", "WorkerDied"]
