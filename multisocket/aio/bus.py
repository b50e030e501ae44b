"""Bus for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import protocol as blocking
from ..message import Message
from ..serializer import MSGPACK, dump
from ..shm import UNSET, Unset
from .protocol import Receiving

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import SocketOptions


class Bus(Receiving):
    """See :class:`multisocket.protocol.Bus`."""

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        super().__init__(blocking.Bus(**options).socket)

    async def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.protocol.Bus.send`."""
        return await self.socket.send_all(content, timeout)

    async def send_obj(self, obj: object, timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.protocol.Bus.send_obj`."""
        return await self.socket.send_all(dump(obj, MSGPACK)[0], timeout)

    async def recv_msg(self, timeout: float | Unset | None = UNSET) -> Message[bytes]:
        """See :meth:`multisocket.protocol.Bus.recv_msg`."""
        return await self.socket.recv_msg(timeout)

    async def forward(self, msg: Message[Any], timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.protocol.Bus.forward`."""
        return await self.socket._send_on(msg, timeout)
