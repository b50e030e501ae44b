"""What the two ends of a pipe tell each other before any message passes."""

from __future__ import annotations

from typing import Protocol

HANDSHAKE_TIMEOUT = 5.0
"""Seconds until a connection must be made, handshake included."""


class Hello:
    """One end's words.

    :param segment: name of the Socket's shared memory.
    :param pipe: id that the Socket has given the pipe.
    :param receives: False when it discards all it gets.
    :param pid: of the process.
    """

    __slots__ = ("pid", "pipe", "receives", "segment")

    def __init__(self, segment: str, pipe: int, receives: bool, pid: int) -> None:
        self.segment = segment
        self.pipe = pipe
        self.receives = receives
        self.pid = pid


class Link(Protocol):
    """What a transport keeps of a connection."""

    def close(self) -> None:
        """Ends it; the other side is told that this was on purpose."""
