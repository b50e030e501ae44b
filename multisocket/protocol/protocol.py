"""What all protocols have in common: a Socket, and the ways to connect and close it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..connector import Dialer, Listener
from ..errors import BadOption, Closed, NotSupported
from ..shm import UNSET, Unset
from ..socket import Socket

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Self, Unpack

    from ..options import DialOptions, ListenOptions, SocketOptions


def require_unset(options: Mapping[str, Any], names: Iterable[str], kind: str) -> None:
    """Of options that a protocol sets itself.

    :raises BadOption: one is given.
    """
    for name in names:
        if name in options:
            raise BadOption(f"a {kind} sets option {name} itself: leave it out")


class Protocol:
    """A Socket under certain rules. Context manager; goes to other processes like its Socket.

    :param options: of the Socket, see :class:`multisocket.Socket`.
    """

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        self.socket = Socket(**options)

    def listen(self, address: str, **options: Unpack[ListenOptions]) -> Listener:
        """See :meth:`multisocket.Socket.listen`."""
        return self.socket.listen(address, **options)

    def dial(self, address: str, **options: Unpack[DialOptions]) -> Dialer:
        """See :meth:`multisocket.Socket.dial`."""
        return self.socket.dial(address, **options)

    def connect(self, address: str) -> Listener | Dialer:
        """See :meth:`multisocket.Socket.connect`."""
        return self.socket.connect(address)

    def close(self) -> None:
        """See :meth:`multisocket.Socket.close`."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sending(Protocol):
    """One that sends each message to one peer."""

    def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send`."""
        self.socket.send(content, timeout)

    def send_many(self, contents: Iterable[ReadableBuffer], timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.Socket.send_many`."""
        return self.socket.send_many(contents, timeout)

    def send_obj(self, obj: object, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send_obj`."""
        self.socket.send_obj(obj, timeout)


class Receiving(Protocol):
    """One that receives contents. Iterating gives them until it is closed."""

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


class LocalProtocol(Protocol):
    """One that stays in the process that made it, because it remembers something there."""

    def __reduce__(self) -> tuple[Any, ...]:
        name = type(self).__name__
        raise NotSupported(f"a {name} stays in the process that made it: make one in the other process, and connect it")
