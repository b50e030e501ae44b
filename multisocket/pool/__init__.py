"""Worker processes that all consume from one Socket, and survive: drop-ins for ``multiprocessing.Pool`` and
``concurrent.futures.ProcessPoolExecutor``, and pipelines of stages."""

from __future__ import annotations

from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .executor import Executor
from .pipeline import Pipeline, Run
from .pool import Pool
from .stage import Stage, StageError, StageStats

__all__ = [
    "Executor",
    "InitializerFailed",
    "Pipeline",
    "Pool",
    "Run",
    "Stage",
    "StageError",
    "StageStats",
    "TaskTimeout",
    "Terminated",
    "WorkerDied",
]
