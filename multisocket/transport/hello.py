"""What the two ends of a pipe tell each other before any message passes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Hello:
    """One end's words.

    :param segment: name of the Socket's shared memory.
    :param pipe: id that the Socket has given the pipe.
    :param receives: False when it discards all it gets.
    :param pid: of the process.
    :param pid_space: tells in which PID namespace that is; 0: not told.
    """

    segment: str
    pipe: int
    receives: bool
    pid: int
    pid_space: int = 0


def own_pid_space() -> int:
    """Of this process; 0 where it cannot be told."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class Link(Protocol):
    """What a transport keeps of a connection."""

    def close(self) -> None:
        """Ends it; the other side is told that this was on purpose."""
