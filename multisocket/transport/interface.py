"""What a transport to other machines is made of. Subclass these three for one of your own, and :func:`register` it.

A :class:`Transport` listens and dials. A :class:`Listening` end accepts connections. A :class:`Connection` carries
bytes, both ways, in order and without loss; what they mean is none of its business. All that a connection does is asked
of it by one thread, which serves all connections of the process, so nothing may block: whoever cannot go on says so,
and is asked again when its file descriptor is ready.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..address import Address
from ..options import Option


class Connection(ABC):
    """One end of a connection that carries bytes."""

    wants_write: bool = False
    """It waits until it can write, for the handshake or for bytes of its own: ``proceed`` is called when it can."""

    is_framed: bool = False
    """``write`` gets one whole message at a time, and takes it whole or not at all."""

    is_plain: bool = False
    """Its bytes are just those of its file descriptor, a socket: once the handshake is done they are moved natively."""

    peer: str = ""
    """Who is at the other end, for people: a host and a port."""

    @abstractmethod
    def fileno(self) -> int:
        """The file descriptor that is ready when it can go on."""

    def proceed(self) -> bool:
        """Goes on with the handshake, and with writing what was taken earlier. Called again and again, when the file
        descriptor is ready. True: the handshake is done.

        :raises OSError, Error: the connection cannot be used.
        """
        return True

    @abstractmethod
    def read(self, most: int) -> bytes | None:
        """Bytes that have come. None: nothing now. Empty: the peer sends nothing more.

        :param most: so many bytes at a go are fine; more are possible.
        :raises OSError, Error: the connection is broken.
        """

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """Takes bytes to send them. Gives how many; 0: none now, and ``wants_write`` is set.

        :raises OSError, Error: the connection is broken.
        """

    def finish(self) -> bool:
        """Nothing more will be written: tells the peer, and throws away what still comes. Asked again until True: what
        was written is where closing the connection takes nothing of it.
        """
        return True

    @abstractmethod
    def close(self) -> None:
        """Ends it. Twice is no error."""

    def detach(self) -> None:
        """Where ``is_plain``: the file descriptor is somebody else's now, who closes it. Nothing more is called."""
        raise NotImplementedError


class Listening(ABC):
    """The end that accepts connections."""

    address: str
    """The bound address: what others dial."""

    @abstractmethod
    def fileno(self) -> int:
        """The file descriptor that is readable when somebody connects."""

    @abstractmethod
    def accept(self) -> Connection | None:
        """The next connection, its handshake still to be made; None: nobody waits.

        :raises OSError: it cannot be accepted now, for want of descriptors.
        """

    @abstractmethod
    def close(self) -> None:
        """Stops listening. Twice is no error."""


class Transport(ABC):
    """How to listen and dial for one scheme."""

    options: Mapping[str, Option] = {}
    """Options of its own, for ``listen``, ``dial`` and addresses, besides those that all have."""

    @abstractmethod
    def listen(self, address: Address, options: Mapping[str, Any]) -> Listening:
        """Starts listening.

        :raises AddressInUse: somebody listens there.
        :raises BadAddress: nobody can listen there.
        """

    @abstractmethod
    def dial(self, address: Address, options: Mapping[str, Any]) -> Connection:
        """Begins a connection; its ``proceed`` makes it. May take the time to look up a name.

        :raises ConnectionRefused, BadAddress: at once.
        """
