"""Bus: what one says, all who are directly connected hear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..message import Message
from ..serializer import MSGPACK, dump
from ..shm import UNSET, Unset
from .protocol import Receiving

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Bus(Receiving):
    """Sends to all its peers, and receives from all of them. Who is slow makes it wait, unless it is made with
    ``send_best_effort=True``: then who has no room does not get the message."""

    def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> int:
        """To all; how many. See :meth:`multisocket.Socket.send_all`."""
        return self.socket.send_all(content, timeout)

    def send_obj(self, obj: object, timeout: float | Unset | None = UNSET) -> int:
        """The same with an object, packed by msgpack."""
        return self.socket.send_all(dump(obj, MSGPACK)[0], timeout)

    def recv_msg(self, timeout: float | Unset | None = UNSET) -> Message[bytes]:
        """See :meth:`multisocket.Socket.recv_msg`; for ``forward``."""
        return self.socket.recv_msg(timeout)

    def forward(self, msg: Message[Any], timeout: float | Unset | None = UNSET) -> int:
        """Passes on what was received: to all but the peer that it came from; how many.

        :raises MessageDropped: its ttl is used up.
        """
        return self.socket._send_on(msg, timeout)
