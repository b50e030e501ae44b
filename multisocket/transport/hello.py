"""What the two ends of a pipe tell each other before any message passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

HANDSHAKE_TIMEOUT = 5.0
"""Seconds until a connection must be made, handshake included."""


@dataclass(frozen=True)
class Hello:
    """One end's words.

    :param segment: name of the Socket's shared memory.
    :param pipe: id that the Socket has given the pipe.
    :param receives: False when it discards all it gets.
    :param pid: of the process.
    """

    segment: str
    pipe: int
    receives: bool
    pid: int


class Link(Protocol):
    """What a transport keeps of a connection."""

    def close(self) -> None:
        """Ends it; the other side is told that this was on purpose."""
