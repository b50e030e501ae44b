"""The libraries, all behind the same small interface. One that cannot be imported is left out."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType
from typing import Any

from . import with_multiprocessing
from .interface import Asker, AsyncEnd, AsyncPeer, Channel, End, Peer, PublishPeer, RequestPeer, ScalePeer

__all__ = [
    "OURS",
    "THEIRS",
    "Asker",
    "AsyncEnd",
    "AsyncPeer",
    "Channel",
    "End",
    "Peer",
    "PublishPeer",
    "RequestPeer",
    "ScalePeer",
    "async_peers",
    "missing",
    "peers",
    "publish_peers",
    "request_peers",
    "scale_peers",
    "versions",
    "window_peers",
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
    ways = {OURS: ("Plain", "Batches", "Shared"), THEIRS: ("Plain", "NoCopy", "Request"), "pynng": ("Plain", "Pair")}
    return [*_ways(ways), with_multiprocessing.Queue(), with_multiprocessing.Pipe()]


def request_peers() -> list[RequestPeer]:
    """All ways to ask and wait for the reply."""
    return _ways({OURS: ("Request",), THEIRS: ("Ask",), "pynng": ("Ask",)})


def window_peers() -> list[RequestPeer]:
    """All ways to have many requests outstanding."""
    return _ways({OURS: ("Request",), THEIRS: ("AskMany",)})


def publish_peers() -> list[PublishPeer]:
    """All ways to publish and lose nothing."""
    return _ways({OURS: ("Publish", "PublishBatches"), THEIRS: ("Publish", "PublishAcknowledged")})


def async_peers() -> list[AsyncPeer]:
    """All ways that have coroutines."""
    return _ways({OURS: ("Async",), THEIRS: ("Async", "AsyncRequest")})


def _ways(names: dict[str, tuple[str, ...]]) -> list[Any]:
    """One of each class, in the libraries that are there."""
    return [getattr(_found[library], name)() for library in names if library in _found for name in names[library]]


def scale_peers() -> list[type[ScalePeer]]:
    """The libraries that can connect within a process."""
    return [module.Scale for module in _found.values()]
