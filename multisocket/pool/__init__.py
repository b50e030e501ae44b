"""Worker processes that all consume from one Socket, and survive: drop-ins for ``multiprocessing.Pool`` and
``concurrent.futures.ProcessPoolExecutor``, and pipelines of stages."""

from __future__ import annotations

from ..exports import publish
from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .executor import Executor
from .pipeline import Pipeline, Run
from .pool import Pool
from .results import AsyncResult, IMapIterator, MapResult
from .stage import Stage, StageError, StageStats

__all__ = [
    "AsyncResult",
    "Executor",
    "IMapIterator",
    "InitializerFailed",
    "MapResult",
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

publish(__name__, __all__, globals())
