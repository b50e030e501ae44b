"""What all protocols have in common: a Socket, and the ways to connect and close it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from ..connector import Dialer, Listener
from ..socket import Socket

Self = TypeVar("Self", bound="Protocol")


class Protocol:
    """A Socket under certain rules. Context manager; goes to other processes like its Socket.

    :param options: of the Socket, see :class:`multisocket.Socket`.
    """

    def __init__(self, **options: Any) -> None:
        self.socket = Socket(**options)

    def listen(self, address: str, **options: Any) -> Listener:
        """See :meth:`multisocket.Socket.listen`."""
        return self.socket.listen(address, **options)

    def dial(self, address: str, **options: Any) -> Dialer:
        """See :meth:`multisocket.Socket.dial`."""
        return self.socket.dial(address, **options)

    def connect(self, address: str) -> Listener | Dialer:
        """See :meth:`multisocket.Socket.connect`."""
        return self.socket.connect(address)

    def close(self) -> None:
        """See :meth:`multisocket.Socket.close`."""
        self.socket.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
