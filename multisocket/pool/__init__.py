"""Worker processes that all consume from one Socket, and survive: drop-ins for ``multiprocessing.Pool`` and
``concurrent.futures.ProcessPoolExecutor``, and pipelines of stages."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..exports import publish
from .errors import InitializerFailed, TaskTimeout, Terminated, WorkerDied
from .executor import Executor
from .pool import Pool
from .results import AsyncResult, IMapIterator, MapResult

if TYPE_CHECKING:
    from .pipeline import Pipeline, Run
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

# Whoever needs no pipelines need not wait for their import.
_LATER = {"Pipeline": "pipeline", "Run": "pipeline", "Stage": "stage", "StageError": "stage", "StageStats": "stage"}

publish(__name__, [name for name in __all__ if name not in _LATER], globals())


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for known, module in _LATER.items():
        globals()[known] = getattr(import_module(f".{module}", __name__), known)
    publish(__name__, _LATER, globals())
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
