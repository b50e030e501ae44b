"""What a library must offer to take part: the same few things of each, as thin as can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from ..plan import Layout, Side

SEND_TIMEOUT = 0.1
"""Seconds that a send waits for room before it raises one of ``End.full``, to see when it is over."""


def _unable(*_: object) -> Any:
    raise NotImplementedError


def _nothing() -> None:
    pass


@dataclass
class End:
    """One end of a connection. Its functions are the library's own: nothing stands between it and the clock.

    :param send: one content.
    :param recv: one content, or what the library gives instead and has its length.
    :param send_many: a batch, where there is such a thing.
    :param recv_many: up to so many contents, at least one.
    :param full: what ``send`` raises when there is no room, or nobody any more.
    """

    close: Callable[[], object]
    send: Callable[[Any], object] = _unable
    recv: Callable[[], Sized] = _unable
    send_many: Callable[[list[bytes]], object] | None = None
    recv_many: Callable[[int], Sequence[Sized]] | None = None
    full: tuple[type[BaseException], ...] = ()


@dataclass
class Channel:
    """What participants are given to find each other: an address, or objects that are made before them.

    :param senders: for each sender. Goes to its process by pickle.
    :param receivers: for each receiver.
    :param release: called when all participants run: gives up this process's copies.
    :param close: called at the end.
    """

    senders: list[Any]
    receivers: list[Any]
    release: Callable[[], object] = field(default=_nothing)
    close: Callable[[], object] = field(default=_nothing)


class Peer(ABC):
    """One way to use one library. Instances hold no state and go to other processes by pickle."""

    side: Side
    transports: frozenset[str] = frozenset({"ipc", "tcp", "inproc"})

    def fits(self, layout: Layout) -> bool:
        """Whether this way makes sense there."""
        return layout.transport in self.transports

    def channel(self, layout: Layout) -> Channel:
        """Prepares, in the process that starts the others."""
        return Channel([layout.address] * layout.senders, [layout.address] * layout.receivers)

    @abstractmethod
    def sender(self, way: Any, layout: Layout) -> End:
        """Opens a sender; ``way`` is one of the channel's."""

    @abstractmethod
    def receiver(self, way: Any, layout: Layout) -> End:
        """Opens a receiver."""


# --- protocols ---


@dataclass
class Asker:
    """One who asks.

    :param ask: with this content, and waits for the reply.
    :param submit: asks, and goes on.
    :param turn: takes the oldest reply and asks again, with this content, so many times.
    """

    close: Callable[[], object]
    ask: Callable[[bytes], object] = _unable
    submit: Callable[[bytes], object] = _unable
    turn: Callable[[bytes, int], object] = _unable


@dataclass
class Replier:
    """One who replies.

    :param serve: replies to each request with its content, until one has another size than this.
    """

    close: Callable[[], object]
    serve: Callable[[int], object]


class RequestPeer(ABC):
    """One way to ask and reply. Like a Peer, it holds no state."""

    side: Side

    @abstractmethod
    def asker(self, layout: Layout) -> Asker:
        """Dials."""

    @abstractmethod
    def replier(self, layout: Layout) -> Replier:
        """Listens."""


@dataclass
class Subscription:
    """One who hears.

    :param count: takes publications of this size until one has another; how many, and that one.
    """

    close: Callable[[], object]
    count: Callable[[int], tuple[int, bytes]]


class PublishPeer(ABC):
    """One way to publish and subscribe, so that nothing is lost. It holds no state."""

    side: Side
    most_unacknowledged: int | None = None
    """Publications after which it must wait until all have heard them, because it drops what finds no room. None: it
    waits for room."""

    @abstractmethod
    def publisher(self, layout: Layout) -> End:
        """Listens; it only sends."""

    @abstractmethod
    def subscriber(self, layout: Layout) -> Subscription:
        """Dials, and subscribes what the publisher sends."""


# --- asyncio ---


@dataclass
class AsyncEnd:
    """One end of a connection, for coroutines: the library's own functions."""

    close: Callable[[], Awaitable[object]]
    send: Callable[[Any], Awaitable[object]]
    recv: Callable[[], Awaitable[Sized]]


class AsyncPeer(ABC):
    """One way to use one library in an event loop. It holds no state."""

    side: Side

    def fits(self, layout: Layout) -> bool:
        """Whether this way makes sense there."""
        return True

    @abstractmethod
    async def sender(self, layout: Layout) -> AsyncEnd:
        """Dials."""

    @abstractmethod
    async def receiver(self, layout: Layout) -> AsyncEnd:
        """Listens."""


# --- scale ---


class ScalePeer(ABC):
    """A library in the connection scale: one server and many clients, all in this thread of this process."""

    side: Side

    @abstractmethod
    def __init__(self, address: str, clients: int) -> None:
        """Makes the server, ready for so many clients."""

    @abstractmethod
    def add_client(self) -> None:
        """One more client, connected."""

    def settle(self) -> None:
        """Waits until the server knows all clients."""
        return

    @abstractmethod
    def ask_all(self, content: bytes) -> None:
        """Every client sends."""

    @abstractmethod
    def answer_all(self) -> None:
        """The server receives and replies as often as there are clients."""

    @abstractmethod
    def hear_all(self) -> None:
        """Every client receives one message."""

    @abstractmethod
    def tell_all(self, content: bytes) -> None:
        """The server sends to every client."""

    @abstractmethod
    def close(self) -> None:
        """Closes the clients, then the server."""
