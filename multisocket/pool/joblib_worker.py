"""What a worker of joblib's backend does first. Apart from the backend, as importing that imports joblib, and so NumPy,
whose libraries look at their variables once, when they are loaded."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys


def prepare(environment: dict[str, str], threads: int | None, nested: bytes) -> None:
    """The first that a worker does.

    :param environment: variables that tell numeric libraries how many threads to use.
    :param threads: for libraries that are loaded already; None: as many as they have.
    :param nested: joblib's backend for what tasks run in parallel themselves, pickled.
    """
    os.environ.update(environment)
    if threads is not None and "numpy" in sys.modules:
        _limit_threads(threads)
    import joblib

    joblib.parallel_config(pickle.loads(nested))


def _limit_threads(threads: int) -> None:
    with contextlib.suppress(ImportError):
        import threadpoolctl  # type: ignore[import-not-found,unused-ignore]

        threadpoolctl.threadpool_limits(threads)
