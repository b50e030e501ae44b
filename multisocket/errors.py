"""What can go wrong. Every message says what was asked, what was found and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class Error(Exception):
    """The base of all errors of multisocket."""


class Closed(Error):
    """The Socket (or ring) is closed, by this process, by its owner, or because its owner died."""


class Timeout(Error, TimeoutError):
    """The time given for a send, a receive or a dial has passed.

    ``sent`` tells how many messages (``send_many``) or peers (``send_all``) had been served by then.
    """

    sent: int = 0


class AddressInUse(Error):
    """Somebody alive listens on this address."""


class BadAddress(Error, ValueError):
    """The address cannot be used: its form, a path that is too long or no socket, an option in it."""


class BadTransport(BadAddress):
    """No transport is known for the address's scheme."""


class BadOption(Error, ValueError):
    """An option that does not exist, or a value of the wrong type or out of range."""


class ConnectionRefused(Error, ConnectionRefusedError):
    """Nobody listens there, or who listens does not want this connection."""


class MessageDropped(Error):
    """The message was given up: best effort without room, or its ttl is used up."""


class BrokenPath(Error):
    """The pipe that a destination starts with is gone, or never was."""


class ContentTooLong(Error, ValueError):
    """The content is larger than the way to the receiver can take. After a send to several, all others got it.

    ``refused`` and ``without_room`` are for protocols: pipes for which it is too long, and that had no room just then.
    """

    refused: Sequence[int] = ()
    without_room: Sequence[int] = ()


class BadMessage(Error, ValueError):
    """Bytes that are no message, or shared memory that contradicts itself."""


class NotSupported(Error):
    """The Socket, or this process's handle of it, cannot do this."""


class RemoteError(Error):
    """Who was asked could not answer: the text is what went wrong there."""


class OutOfSharedMemory(Error, MemoryError):
    """The system has no more shared memory (usually: /dev/shm is full)."""
