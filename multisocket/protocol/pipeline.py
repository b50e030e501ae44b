"""Pipeline: Push gives each message to one Pull, the one with the shortest queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Closed
from ..shm import UNSET, Unset
from .protocol import Protocol

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Push(Protocol):
    """The giving end: sends each message to one, receives nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(no_recv=True, **options)

    def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send`."""
        self.socket.send(content, timeout)

    def send_many(self, contents: Iterable[ReadableBuffer], timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.Socket.send_many`."""
        return self.socket.send_many(contents, timeout)

    def send_obj(self, obj: object, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send_obj`."""
        self.socket.send_obj(obj, timeout)


class Pull(Protocol):
    """The taking end: receives, sends nothing. Iterating gives contents until it is closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(no_send=True, **options)

    def recv(self, timeout: float | Unset | None = UNSET) -> bytes:
        """See :meth:`multisocket.Socket.recv`."""
        return self.socket.recv(timeout)

    def recv_many(self, max_messages: int, timeout: float | Unset | None = UNSET) -> list[bytes]:
        """See :meth:`multisocket.Socket.recv_many`."""
        return self.socket.recv_many(max_messages, timeout)

    def recv_obj(self, timeout: float | Unset | None = UNSET) -> Any:
        """See :meth:`multisocket.Socket.recv_obj`."""
        return self.socket.recv_obj(timeout)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                content = self.recv(None)
            except Closed:
                return
            yield content
