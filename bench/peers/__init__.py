"""The libraries, all behind the same small interface. One that cannot be imported is left out."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType

from . import with_multiprocessing
from .interface import Channel, End, Peer, ScalePeer

__all__ = [
    "OURS",
    "THEIRS",
    "Channel",
    "End",
    "Peer",
    "ScalePeer",
    "missing",
    "peers",
    "scale_peers",
    "versions",
]

OURS = "multisocket"
THEIRS = "pyzmq"
"""Whom the goals are set against."""

missing: dict[str, str] = {}
"""Libraries that are left out, and why."""


def _find(library: str) -> ModuleType | None:
    try:
        return importlib.import_module(f".with_{library}", __package__)
    except ImportError as error:
        missing[library] = str(error)
        return None


_found = {name: module for name in (OURS, THEIRS, "pynng") if (module := _find(name)) is not None}

versions: dict[str, str] = {name: module.VERSION for name, module in _found.items()}
versions["multiprocessing"] = f"of Python {platform.python_version()}"


def peers() -> list[Peer]:
    """All ways to use all libraries, for messages that flow or go to and fro."""
    ways: list[Peer] = []
    for module, names in (
        (_found.get(OURS), ("Plain", "Batches", "Shared")),
        (_found.get(THEIRS), ("Plain", "NoCopy", "Request")),
        (_found.get("pynng"), ("Plain", "Pair")),
        (with_multiprocessing, ("Queue", "Pipe")),
    ):
        if module is not None:
            ways += [getattr(module, name)() for name in names]
    return ways


def scale_peers() -> list[type[ScalePeer]]:
    """The libraries that can connect within a process."""
    return [module.Scale for module in _found.values()]
