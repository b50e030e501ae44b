"""What all protocols for coroutines have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import socket as blocking
from ..connector import Dialer, Listener
from ..errors import Closed
from ..shm import UNSET, Unset
from .socket import Socket

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Self, Unpack

    from ..options import DialOptions, ListenOptions


class Protocol:
    """A Socket under certain rules, for coroutines. ``async with`` closes it.

    :param sock: that Socket.
    """

    def __init__(self, sock: blocking.Socket) -> None:
        self.socket = Socket.of(sock)
        """Its Socket: an :class:`multisocket.aio.Socket`."""

    async def listen(self, address: str, **options: Unpack[ListenOptions]) -> Listener:
        """See :meth:`multisocket.Socket.listen`."""
        return await self.socket.listen(address, **options)

    async def dial(self, address: str, **options: Unpack[DialOptions]) -> Dialer:
        """See :meth:`multisocket.Socket.dial`."""
        return await self.socket.dial(address, **options)

    async def connect(self, address: str) -> Listener | Dialer:
        """See :meth:`multisocket.Socket.connect`."""
        return await self.socket.connect(address)

    async def close(self) -> None:
        """See :meth:`multisocket.Socket.close`."""
        await self.socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Sending(Protocol):
    """One that sends each message to one peer."""

    async def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send`."""
        await self.socket.send(content, timeout)

    async def send_many(self, contents: Iterable[ReadableBuffer], timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.Socket.send_many`."""
        return await self.socket.send_many(contents, timeout)

    async def send_obj(self, obj: object, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send_obj`."""
        await self.socket.send_obj(obj, timeout)


class Receiving(Protocol):
    """One that receives contents. ``async for`` gives them until it is closed."""

    async def recv(self, timeout: float | Unset | None = UNSET) -> bytes:
        """See :meth:`multisocket.Socket.recv`."""
        return await self.socket.recv(timeout)

    async def recv_many(self, max_messages: int, timeout: float | Unset | None = UNSET) -> list[bytes]:
        """See :meth:`multisocket.Socket.recv_many`."""
        return await self.socket.recv_many(max_messages, timeout)

    async def recv_obj(self, timeout: float | Unset | None = UNSET) -> Any:
        """See :meth:`multisocket.Socket.recv_obj`."""
        return await self.socket.recv_obj(timeout)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                content = await self.recv(None)
            except Closed:
                return
            yield content
