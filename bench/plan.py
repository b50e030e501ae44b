"""What a cell of the results is, who is compared in it, and how long and how often it is measured."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

KIB = 1 << 10
MIB = 1 << 20

# What may wait in the queues of libraries that count messages: so many bytes, within these numbers of
# messages. pyzmq is fastest with about this, at each size: more leaves the processor's cache.
_QUEUE_BYTES = 512 * KIB
_LEAST_QUEUE = 2
_MOST_QUEUE = 10_000

# Bytes that go between two looks at the clock, within a thousand messages.
_CHUNK_BYTES = 1 * MIB
_MOST_CHUNK = 1000

_BATCH_BYTES = 256 * KIB
_MOST_BATCH = 256


@dataclass(frozen=True)
class Cell:
    """One thing that is measured, of every side alike.

    :param part: of the suite: rate, roundtrip, fan, protocols, asyncio, pool or scale.
    :param kind: of work within the part.
    :param transport: ipc, tcp or inproc; of pools: how many workers.
    :param size: of a content, bytes; 0: it does not matter.
    :param metric: that says who does better.
    """

    part: str
    kind: str
    transport: str
    size: int
    metric: str = "rate"


@dataclass(frozen=True, order=True)
class Side:
    """Who is measured: a library, used in one way (the variant; empty for the plain way)."""

    library: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.library} {self.variant}".strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Layout:
    """Who takes part in a cell, and where they meet.

    :param transport: ipc, tcp or inproc.
    :param size: of a content, bytes.
    :param directory: an empty one, for socket paths; removed afterwards.
    :param senders: how many.
    :param receivers: how many.
    :param duplex: the one sender and the one receiver also talk the other way.
    :param port: of the loopback interface, for tcp; nobody's when this was made.
    """

    transport: str
    size: int
    directory: str
    senders: int = 1
    receivers: int = 1
    duplex: bool = False
    port: int = field(default_factory=_free_port)

    @property
    def address(self) -> str:
        """Where one side listens."""
        if self.transport == "tcp":
            return f"tcp://127.0.0.1:{self.port}"
        return "inproc://bench" if self.transport == "inproc" else f"ipc://{self.directory}/s"

    @property
    def sender_listens(self) -> bool:
        """The side that is alone listens; one to one, the receiver does."""
        return self.receivers > 1

    @property
    def queue(self) -> int:
        """Messages that may wait on either side, where a library counts messages."""
        return max(_LEAST_QUEUE, min(_MOST_QUEUE, _QUEUE_BYTES // self.size))

    @property
    def chunk(self) -> int:
        """Messages between two looks at the clock."""
        return max(1, min(_MOST_CHUNK, _CHUNK_BYTES // self.size))

    @property
    def batch(self) -> int:
        """Messages of one batch."""
        return max(1, min(_MOST_BATCH, _BATCH_BYTES // self.size))


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    :param rounds: how often each side of each cell runs.
    :param warm_up: seconds that run before the measurement.
    :param window: seconds that are measured.
    :param deadline: seconds after which a side of a cell has failed.
    :param sizes: of contents, bytes.
    :param workers: processes that fan-out goes to and fan-in comes from.
    :param clients: of the connection scale.
    """

    rounds: int = 5
    warm_up: float = 0.08
    window: float = 0.3
    deadline: float = 10.0
    sizes: tuple[int, ...] = (64, KIB, 64 * KIB, MIB, 16 * MIB)
    workers: int = 4
    clients: int = 10_000
