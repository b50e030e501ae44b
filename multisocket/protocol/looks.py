"""How long a receive goes on that drops what is not wanted: until its time is over, whatever comes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..shm import Unset
from ..socket import Socket


def end_of(sock: Socket, timeout: float | Unset | None) -> float | None:
    """When the time is over, on the monotonic clock; None: never.

    :param timeout: seconds, None for ever; when it is not given, the Socket's ``recv_timeout``.
    """
    seconds = sock._options["recv_timeout"] if isinstance(timeout, Unset) else timeout
    return None if seconds is None else time.monotonic() + seconds


def looks(sock: Socket, end: float | None) -> Iterator[float | None]:
    """How long each of several receives may wait. At the end what is there by then is still looked at, but nothing
    that comes later: else a flood of what is not wanted would never let it end."""
    while end is None or time.monotonic() < end:
        yield None if end is None else max(0.0, end - time.monotonic())
    for _ in range(sock._depth + 1):
        yield 0.0
