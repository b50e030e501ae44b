"""Publish and subscribe for coroutines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from .. import protocol as blocking
from ..errors import Closed, Timeout
from ..protocol.looks import end_of, looks
from ..protocol.pubsub import BLOCK, DROP_NEWEST, LOOK_TIME, Publication, Slow, Subscriber
from ..shm import UNSET, Unset
from .protocol import Protocol

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import PubSubOptions


class Pub(Protocol):
    """See :class:`multisocket.protocol.Pub`."""

    def __init__(self, *, slow: Slow = DROP_NEWEST, backlog: int = 1000, **options: Unpack[PubSubOptions]) -> None:
        self._pub = blocking.Pub(slow=slow, backlog=backlog, **options)
        self._blocks = slow == BLOCK
        super().__init__(self._pub.socket)

    async def send(self, topic: bytes | str, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.protocol.Pub.send`."""
        if not self._blocks:
            await self.socket._breathe()
            return self._pub.send(topic, content)
        self._pub._hear()
        pipes, head = self._pub._find(topic)
        left = list(pipes)

        def offer(pipes: list[int]) -> list[int]:
            nonlocal left
            left = self.socket.socket._offer(pipes, content, head=head)
            return left

        try:
            return await self.socket._to_each(left, offer, timeout)
        except Timeout:
            self._pub._count_lost(left)
            raise

    async def wait_subscribers(self, n: int, timeout: float | None = None) -> None:
        """See :meth:`multisocket.protocol.Pub.wait_subscribers`."""
        end = None if timeout is None else time.monotonic() + timeout
        while len(self.subscribers) < n:
            left = LOOK_TIME if end is None else min(LOOK_TIME, end - time.monotonic())
            if left <= 0:
                raise Timeout(f"{len(self.subscribers)} of {n} subscribers came within {timeout} s")
            try:
                await self.socket._readable(time.monotonic() + left, left)
            except Timeout:
                continue

    @property
    def subscribers(self) -> list[Subscriber]:
        """See :attr:`multisocket.protocol.Pub.subscribers`."""
        return self._pub.subscribers


class Sub(Protocol):
    """See :class:`multisocket.protocol.Sub`."""

    def __init__(self, topics: Iterable[bytes | str] = (), **options: Unpack[PubSubOptions]) -> None:
        self._sub = blocking.Sub(topics, **options)
        super().__init__(self._sub.socket)

    @property
    def topics(self) -> set[bytes]:
        """See :attr:`multisocket.protocol.Sub.topics`."""
        return self._sub.topics

    async def subscribe(self, topic: bytes | str) -> None:
        """See :meth:`multisocket.protocol.Sub.subscribe`."""
        self._sub.subscribe(topic)

    async def unsubscribe(self, topic: bytes | str) -> None:
        """See :meth:`multisocket.protocol.Sub.unsubscribe`."""
        self._sub.unsubscribe(topic)

    async def close(self) -> None:
        """See :meth:`multisocket.protocol.Sub.close`."""
        self._sub._take_leave()
        await super().close()

    async def recv(self, timeout: float | Unset | None = UNSET) -> Publication:
        """See :meth:`multisocket.protocol.Sub.recv`."""
        for left in looks(self._sub.socket, end_of(self._sub.socket, timeout)):
            publication = self._sub._reader.split(await self.socket.recv(left))
            if publication is not None:
                return publication
        raise Timeout("no publication that is wanted came in time")

    async def recv_many(self, max_messages: int, timeout: float | Unset | None = UNSET) -> list[Publication]:
        """See :meth:`multisocket.protocol.Sub.recv_many`."""
        first = await self.recv(timeout)
        if max_messages == 1 or not self.socket.socket._is_readable:
            return [first]
        try:
            return [first, *self._sub._reader.recv_many(max_messages - 1, 0)]
        except Timeout:  # others were faster
            return [first]

    async def __aiter__(self) -> AsyncIterator[Publication]:
        while True:
            try:
                publication = await self.recv(None)
            except Closed:
                return
            yield publication
